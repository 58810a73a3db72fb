"""The one name that the distribution `redrive` adds to an environment; its programs lie below it, in `_path`."""
