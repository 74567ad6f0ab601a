"""The routes, one file per family; each has a function ``router(service, settings)``."""
