"""A bundle behind HTTP and gRPC: the Open Inference Protocol (KServe v2), batching, one engine process per device."""
