"""Training and testing of video networks, on Lightning: `dynpool train`, `evaluate`, `fuse` and `compare`."""
