"""Groups that arrive one by one or in shares, and a judge behind an event loop. No framework, no Ray."""
