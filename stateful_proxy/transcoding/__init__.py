"""HTTP/JSON and gRPC-Web for methods of the function: requests become messages, messages become responses. Nothing here does I/O."""
