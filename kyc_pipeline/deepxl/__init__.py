"""The DeepXL API.

`contract` has the shape of a response, `client` makes the calls, `multipart` and `transport` send them,
`echo` compares what a response repeats of its request, `call_errors` says what a failure means, and
`simulator` is a server for tests and the demo.
"""
