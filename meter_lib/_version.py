"""The version, in one place: the build reads it here, programs as `meter_lib.__version__`."""

__version__ = "1.0.0.dev0"
