"""Running tasks: in this process or on Ray, with faults that tests can inject."""
