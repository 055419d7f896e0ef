"""A judge on vLLM, in this process or in a child process."""
