"""Generated examples take as long as the machine lets them: a busy one is no failure."""

from hypothesis import settings

settings.register_profile("redrive", deadline=None)
settings.load_profile("redrive")
