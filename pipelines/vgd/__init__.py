"""VGD benchmarks: built from annotations by one command, locked by hash, verified, and described."""
