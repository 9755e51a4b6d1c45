//! The quantize job: stage, write, re-open, judge, commit or refuse.
