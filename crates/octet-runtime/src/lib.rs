//! Tokenizer, chat template, sampler and the generation loop.
