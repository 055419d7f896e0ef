"""One comparison from top to bottom: the group's state, the request, the verdict."""
