//! Which tensors a step is about.

use octet_model::{LinearSite, Role};
use regex_lite::Regex;
use std::{fmt, str::FromStr};

/// Some of a model's weight matrices, written as one of
///
/// - `linears`: all linears of the blocks, the routers of experts excepted; `embedding`; `head`
/// - a role: `q`, `k`, `v`, `qkv`, `o`, `gate`, `up`, `gate_up`, `down`, `expert_gate`, …, `experts`, `router`
/// - `layers:4` or `layers:0-3`: the linears of these blocks, both ends included
/// - a module path, in which `*` stands for anything and `?` for one character: `model.layers.*.mlp.up_proj`
/// - `re:` and a regular expression found anywhere in the module path
/// - several of these joined by `&`, where all must hold: `down & layers:0-1`
///
/// A head that shares the embedding's tensor answers to `embedding` and to `head`.
#[derive(Clone, Debug)]
pub struct Target {
    text: String,
    terms: Vec<Term>,
}

#[derive(Clone, Debug)]
enum Term {
    Linears,
    Embedding,
    Head,
    Experts,
    Role(Role),
    Layers { first: usize, last: usize },
    Path(Regex),
}

const ROLES: [(Role, &str); 15] = [
    (Role::Q, "q"),
    (Role::K, "k"),
    (Role::V, "v"),
    (Role::Qkv, "qkv"),
    (Role::O, "o"),
    (Role::Gate, "gate"),
    (Role::Up, "up"),
    (Role::GateUp, "gate_up"),
    (Role::Down, "down"),
    (Role::ExpertGate, "expert_gate"),
    (Role::ExpertUp, "expert_up"),
    (Role::ExpertDown, "expert_down"),
    (Role::Router, "router"),
    (Role::Embedding, "embedding"),
    (Role::Head, "head"),
];

/// The name recipes and plans use for a role.
pub(crate) fn role_name(role: Role) -> &'static str {
    ROLES.iter().find(|row| row.0 == role).map_or("linear", |row| row.1)
}

/// Whether the embedding table is the head too.
pub(crate) fn is_tied(site: &LinearSite) -> bool {
    site.role == Role::Embedding && site.input.kind == octet_model::InputKind::Head
}

impl Target {
    /// A target of one of the fixed names; other text is taken as an exact path.
    pub(super) fn named(text: &str) -> Self {
        let term = match text {
            "linears" => Term::Linears,
            "embedding" => Term::Embedding,
            _ => Term::Head,
        };
        Self { text: text.into(), terms: vec![term] }
    }

    /// The target that names one site; of an expert, all experts of its block in the same role.
    pub(super) fn site(site: &LinearSite) -> Result<Self, String> {
        match (site.role, site.layer) {
            (Role::Embedding, _) => Ok(Self::named("embedding")),
            (Role::Head, _) => Ok(Self::named("head")),
            (Role::ExpertGate | Role::ExpertUp | Role::ExpertDown, Some(layer)) => {
                format!("{} & layers:{layer}", role_name(site.role)).parse()
            }
            _ if site.module.contains('.') => site.module.parse(),
            _ => format!("re:^{}$", regex_lite::escape(&site.module)).parse(),
        }
    }

    /// The target as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it includes `site`.
    pub fn matches(&self, site: &LinearSite) -> bool {
        self.terms.iter().all(|term| term.matches(site))
    }
}

impl Term {
    fn matches(&self, site: &LinearSite) -> bool {
        match self {
            Self::Linears => !matches!(site.role, Role::Embedding | Role::Head | Role::Router),
            Self::Embedding => site.role == Role::Embedding,
            Self::Head => site.role == Role::Head || is_tied(site),
            Self::Experts => matches!(site.role, Role::ExpertGate | Role::ExpertUp | Role::ExpertDown),
            Self::Role(role) => site.role == *role,
            Self::Layers { first, last } => site.role != Role::Router && site.layer.is_some_and(|layer| (*first..=*last).contains(&layer)),
            Self::Path(regex) => regex.is_match(&site.module),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A regular expression may hold an `&` of its own, so it can only come last.
        let (names, regex) = match text.find("re:").filter(|&at| text[..at].trim_end().is_empty() || text[..at].trim_end().ends_with('&')) {
            Some(at) => (text[..at].trim_end().trim_end_matches('&'), Some(&text[at + 3..])),
            None => (text, None),
        };
        let mut terms = Vec::new();
        if !(names.trim().is_empty() && regex.is_some()) {
            terms = names.split('&').map(|name| term(name.trim(), text)).collect::<Result<Vec<_>, _>>()?;
        }
        if let Some(regex) = regex {
            terms.push(Term::Path(compile(regex, text)?));
        }
        Ok(Self { text: text.trim().into(), terms })
    }
}

fn term(name: &str, whole: &str) -> Result<Term, String> {
    if let Some(range) = name.strip_prefix("layers:") {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        return match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Term::Layers { first, last }),
            _ => Err(format!("{name:?} is not a range of layers; write it like layers:4 or layers:0-3")),
        };
    }
    match name {
        "linears" => Ok(Term::Linears),
        "embedding" => Ok(Term::Embedding),
        "head" => Ok(Term::Head),
        "experts" => Ok(Term::Experts),
        _ => match ROLES.iter().find(|row| row.1 == name) {
            Some(row) => Ok(Term::Role(row.0)),
            None if name.contains(['.', '*', '?']) => Ok(Term::Path(compile(&glob(name), whole)?)),
            None => Err(unknown(name)),
        },
    }
}

fn unknown(name: &str) -> String {
    let roles: Vec<&str> = ROLES.iter().map(|row| row.1).filter(|name| !["router", "embedding", "head"].contains(name)).collect();
    format!(
        "there is no target {name:?}; name linears, embedding, head, a role ({}, experts, router), layers:0-3, a module path with * or ?, \
         or re: and a regular expression; join several with &",
        roles.join(", ")
    )
}

/// The expression of a module path with `*` and `?`.
fn glob(path: &str) -> String {
    let inner: String = path
        .chars()
        .map(|c| match c {
            '*' => ".*".into(),
            '?' => ".".into(),
            c => regex_lite::escape(c.encode_utf8(&mut [0; 4])),
        })
        .collect();
    format!("^{inner}$")
}

fn compile(regex: &str, target: &str) -> Result<Regex, String> {
    Regex::new(regex).map_err(|error| format!("the target {target:?} is not a regular expression: {error}"))
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
