"""Recognition of panics of libraries that are written in Rust."""


def is_panic(error: BaseException) -> bool:
    """Return whether an exception is a panic: it is no Exception, but fails one call alone."""
    return type(error).__module__ == "pyo3_runtime"
