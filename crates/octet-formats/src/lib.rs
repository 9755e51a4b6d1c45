//! On-disk formats: names to bytes and back.
