"""The loops over pixels and runs that NumPy has no words for, compiled by Numba on their first use.

They do no checks of their own but those they say; callers pass arrays of the dtypes given and places inside them. Call
the functions of `masks` and `prompts`, which check.
Compiled code is kept beside these files or in the user's cache folder, so that it is made once a machine. A loop calls
none of another file: Numba compiles it again when its own file changes, and not when another one does.
"""
