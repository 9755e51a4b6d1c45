//! Architectures as data: specs, families, the block graph and the forward pass.
