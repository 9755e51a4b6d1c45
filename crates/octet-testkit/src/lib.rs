//! Helpers of octet's tests: golden loader, tolerances, tiny random models.
