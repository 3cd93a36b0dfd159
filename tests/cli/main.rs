//! Drives the `tunesmith` binary from outside.
