from object_store import store

__all__ = ["store"]
