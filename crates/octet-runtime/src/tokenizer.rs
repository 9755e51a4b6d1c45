//! Text to token ids and back, as tokenizer.json and tokenizer_config.json say.

use crate::{Error, Result, guard::guarded, settings::TokenizerConfig};
use octet_formats::Folder;
use std::{fmt, sync::Arc};

/// A model's tokenizer with its special tokens; cloning shares it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    bos: Option<u32>,
    add_bos: Option<bool>,
    eos: Option<u32>,
    bos_text: Option<String>,
    eos_text: Option<String>,
    len: usize,
}

impl Tokenizer {
    /// Opens tokenizer.json of `folder`, with tokenizer_config.json and special_tokens_map.json where they exist.
    ///
    /// # Errors
    /// If tokenizer.json is missing or cannot be understood.
    pub fn open(folder: &Folder) -> Result<Self> {
        let Some(bytes) = folder.read("tokenizer.json")? else {
            let remedy = if folder.read("tokenizer.model")?.is_some() {
                "it has only a SentencePiece tokenizer.model: save the tokenizer once with a recent transformers, which writes tokenizer.json"
            } else {
                "copy it from the checkpoint this model came from"
            };
            return Err(Error::MissingFile { folder: folder.name().into(), file: "tokenizer.json", remedy });
        };
        let bad = |what: String| Error::BadFile { folder: folder.name().into(), file: "tokenizer.json", what };
        let opened = guarded(|| tokenizers::Tokenizer::from_bytes(&*bytes).map_err(|e| e.to_string()));
        let mut inner = opened.and_then(|opened| opened).map_err(bad)?;
        // A saved truncation or padding setting would silently cut evaluation texts.
        inner.with_truncation(None).map_err(|e| bad(e.to_string()))?;
        inner.with_padding(None);
        Ok(Self::new(inner, TokenizerConfig::open(folder)?))
    }

    fn new(inner: tokenizers::Tokenizer, config: TokenizerConfig) -> Self {
        let id = |token: &Option<String>| token.as_deref().and_then(|text| inner.token_to_id(text));
        let (bos, eos) = (id(&config.bos_token), id(&config.eos_token));
        let len = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        Self { len, bos, eos, add_bos: config.add_bos, bos_text: config.bos_token, eos_text: config.eos_token, inner: Arc::new(inner) }
    }

    /// Token ids of `text`. With `add_special`, the tokens the tokenizer's own configuration adds: `add_bos_token` of
    /// tokenizer_config.json decides about the beginning-of-sequence token (never two of them), the post-processor of
    /// tokenizer.json about everything else and wherever `add_bos_token` is absent.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, add_special).map_err(|e| e.to_string()));
        let encoding = encoding.and_then(|encoding| encoding).map_err(Error::Tokenizer)?;
        let mut ids = encoding.get_ids().to_vec();
        if let (true, Some(bos)) = (add_special, self.bos) {
            // The text may itself begin with the token, as rendered chat templates do.
            let leading = ids.iter().take_while(|&&id| id == bos).count();
            let written = self.bos_text.as_deref().is_some_and(|token| text.starts_with(token));
            let wanted = match self.add_bos {
                Some(true) => 1,
                Some(false) => usize::from(written),
                None => leading.min(1),
            };
            ids.drain(..leading.saturating_sub(wanted));
            if leading < wanted {
                ids.insert(0, bos);
            }
        }
        Ok(ids)
    }

    /// Text of `ids`; special tokens are left out.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = guarded(|| self.inner.decode(ids, true).map_err(|e| e.to_string()));
        text.and_then(|text| text).map_err(Error::Tokenizer)
    }

    /// The beginning-of-sequence token, where the tokenizer has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The beginning-of-sequence token if this tokenizer puts one in front of every text.
    pub fn leading_bos(&self) -> Option<u32> {
        let bos = self.bos?;
        let first = self.encode("a", true).ok()?.first().copied();
        (first == Some(bos)).then_some(bos)
    }

    /// The end-of-sequence token of tokenizer_config.json.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The text of the beginning-of-sequence token.
    pub fn bos_text(&self) -> Option<&str> {
        self.bos_text.as_deref()
    }

    /// The text of the end-of-sequence token.
    pub fn eos_text(&self) -> Option<&str> {
        self.eos_text.as_deref()
    }

    /// The text of token `id` as the vocabulary spells it, or `None` outside the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token spelled as in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the largest token id.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks that the model's embedding of `vocab` rows has one for every token this tokenizer makes of text.
    ///
    /// Special tokens that nothing uses are allowed to lie outside, as in checkpoints whose tokenizer is shared with a
    /// multimodal sibling (Gemma 3's image placeholder).
    ///
    /// # Errors
    /// If a token has no row; the smallest such id is named.
    pub fn check_vocabulary(&self, vocab: usize, chat_template: Option<&str>) -> Result<()> {
        if self.len <= vocab {
            return Ok(());
        }
        let added = self.inner.get_added_tokens_decoder();
        let harmless = |id: u32, token: &str| {
            added.get(&id).is_some_and(|t| t.special)
                && Some(id) != self.bos
                && Some(id) != self.eos
                && !chat_template.is_some_and(|template| template.contains(token))
        };
        let outside = self.inner.get_vocab(true).into_iter().filter(|(token, id)| *id as usize >= vocab && !harmless(*id, token));
        match outside.min_by_key(|(_, id)| *id) {
            Some((token, id)) => Err(Error::TokenizerTooLarge { token, id, vocab }),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({} tokens, bos {:?}, eos {:?})", self.len(), self.bos, self.eos)
    }
}
