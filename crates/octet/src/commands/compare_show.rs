//! How two models' texts are shown: on a terminal, and as a page.

use octet_eval::outputs::{Outputs, Token, Written};
use std::{fmt::Write, io::IsTerminal};

/// Columns of a terminal.
const WIDTH: usize = crate::ui::WIDTH;

/// Columns of a name in front of a text.
const INDENT: usize = 12;

/// Divergence in nats from which a token is marked lightly, and strongly.
const LIGHT: f64 = 0.02;
const STRONG: f64 = 0.2;

/// All prompts for a terminal of eighty columns.
pub(super) fn text(all: &[Outputs]) -> String {
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    all.iter().map(|one| prompt(one, colours)).collect::<Vec<_>>().join("\n\n")
}

fn prompt(one: &Outputs, colours: bool) -> String {
    let mut lines = vec![field("prompt", &flat(&one.prompt))];
    let shared = one.parts_at.unwrap_or(one.base.text.len());
    let quant = one.quant.as_ref();
    let both = floor(&one.base.text, shared);
    if !both.is_empty() {
        lines.push(field("both", &flat(both)));
    }
    match (one.parts_at, quant) {
        (_, None) => lines.push(field("quantized", "its numbers are not finite, it writes nothing")),
        (None, Some(_)) => lines.push(field("", &format!("the same text, {} tokens", one.base.tokens))),
        (Some(at), Some(quant)) => {
            let mark = |text: &str| if colours { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_string() };
            lines.push(mark(&field("original", &format!("| {}", flat(one.base.text.get(at..).unwrap_or_default())))));
            lines.push(mark(&field("quantized", &format!("| {}", flat(quant.text.get(at..).unwrap_or_default())))));
            let tokens = parted_after(&one.tokens, at);
            lines.push(field("", &format!("part after {tokens} tokens of {}", one.base.tokens)));
        }
    }
    let mut worst: Vec<&Token> = one.tokens.iter().filter(|token| token.kl >= LIGHT).collect();
    worst.sort_by(|a, b| b.kl.total_cmp(&a.kl));
    let worst: Vec<String> = worst.iter().take(4).map(|token| format!("{:?} {:.3}", token.text, token.kl)).collect();
    let agree = one.tokens.iter().filter(|token| token.same_top).count();
    let worst = if worst.is_empty() { String::new() } else { format!("; most at {}", worst.join(", ")) };
    lines.push(field("divergence", &format!("KL {:.5} nats a token, same top {agree} of {}{worst}", one.kl, one.tokens.len())));
    lines.push(field("health", &health(&one.base, quant)));
    lines.join("\n")
}

/// Tokens whose text lies wholly in the first `at` bytes.
fn parted_after(tokens: &[Token], at: usize) -> usize {
    let mut end = 0;
    tokens
        .iter()
        .take_while(|token| {
            end += token.text.len();
            end <= at
        })
        .count()
}

fn health(base: &Written, quant: Option<&Written>) -> String {
    let figures = |f: fn(&Written) -> f64| {
        let of = |written: &Written| format!("{:.0}", 100.0 * f(written));
        format!("{} -> {} %", of(base), quant.map_or("-".into(), of))
    };
    format!("repeated 4-grams {}, in loops {}", figures(|w| w.health.repetition), figures(|w| w.health.longest_loop))
}

/// A named text, broken at words so that it fits.
fn field(name: &str, text: &str) -> String {
    let (mut lines, mut line) = (vec![], String::new());
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH - INDENT {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        while line.chars().count() > WIDTH - INDENT {
            let cut = line.char_indices().nth(WIDTH - INDENT).map_or(line.len(), |(at, _)| at);
            let rest = line.split_off(cut);
            lines.push(std::mem::replace(&mut line, rest));
        }
    }
    lines.push(line);
    format!("{name:<INDENT$}{}", lines.join(&format!("\n{:INDENT$}", ""))).trim_end().to_string()
}

/// Text on one line, control characters made visible.
fn flat(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect::<String>().replace('\n', "\u{23ce} ")
}

/// The first `at` bytes, or less where that is inside a character.
fn floor(text: &str, at: usize) -> &str {
    &text[..text.floor_char_boundary(at)]
}

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1a1c20;--paper:#fff;--soft:#667;--line:#d8dae0;--light:#ffe9b0;--strong:#ffb3a0;--same:#667;--cut:#0b63b0}
@media(prefers-color-scheme:dark){:root{--ink:#e8e9ec;--paper:#15171b;--soft:#99a;--line:#33363d;--light:#5a4710;--strong:#7a2a1a;--same:#9aa;--cut:#5aa9f0}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:70rem;margin:0 auto;padding:1rem}
h1{font-size:1.4rem}h2{font-size:1rem;margin:2rem 0 .5rem;border-top:1px solid var(--line);padding-top:1rem;overflow-wrap:anywhere}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(18rem,100%),1fr));gap:1rem}
.text{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid var(--line);border-radius:.4rem;padding:.7rem;font:14px/1.5 ui-monospace,monospace}
.text b{display:block;font:600 .8rem system-ui,sans-serif;color:var(--soft)}.same{color:var(--same)}
.at{color:var(--cut);font-weight:700}.sum{color:var(--ink)}
mark{background:var(--light);color:inherit}mark.s{background:var(--strong)}p{color:var(--soft);margin:.4rem 0}
@media print{body{max-width:none}.text{break-inside:avoid}h2{break-after:avoid}}";

/// A page that needs nothing else.
pub(super) fn page(base: &str, quant: &str, all: &[Outputs]) -> String {
    let mut html = String::from("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    html.push_str("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><link rel=\"icon\" href=\"data:,\">");
    let title = format!("{} against {}", escape(quant), escape(base));
    // Writing to a string cannot fail.
    let _ = write!(html, "<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>");
    let _ = write!(
        html,
        "<p class=\"sum\">{}</p><p>Text both models share is pale; {PART} is where they part. Tokens of the original's text are marked where the models diverge: \
         <mark>{LIGHT} nats</mark> or <mark class=\"s\">{STRONG} nats</mark> and more.</p>",
        escape(&in_all(all))
    );
    for one in all {
        let _ = write!(html, "<h2>{}</h2><div class=\"pair\">", escape(&one.prompt));
        let shared = one.parts_at.unwrap_or(one.base.text.len());
        let _ = write!(html, "<div class=\"text\"><b>original</b>{}</div>", marked(&one.tokens, one.parts_at));
        let other = one.quant.as_ref().map_or_else(
            || "<em>its numbers are not finite</em>".to_string(),
            |quant| {
                let same = floor(&quant.text, shared);
                let part = if one.parts_at.is_some() { PART } else { "" };
                format!("<span class=\"same\">{}</span>{part}{}", escape(same), escape(&quant.text[same.len()..]))
            },
        );
        let _ = write!(html, "<div class=\"text\"><b>quantized</b>{other}</div></div>");
        let parts = one.parts_at.map_or("the same text".into(), |at| {
            let after = parted_after(&one.tokens, at);
            format!("parted after {after} token{}", if after == 1 { "" } else { "s" })
        });
        let agree = one.tokens.iter().filter(|token| token.same_top).count();
        let _ = write!(
            html,
            "<p>{parts}; KL {:.5} nats a token, same top token {agree} of {}; {}</p>",
            one.kl,
            one.tokens.len(),
            escape(&health(&one.base, one.quant.as_ref()))
        );
    }
    html.push_str("</body></html>\n");
    html
}

/// What marks the place where two texts part.
const PART: &str = "<span class=\"at\" title=\"here they part\">\u{25b8}</span>";

/// All prompts in a sentence.
fn in_all(all: &[Outputs]) -> String {
    let same = all.iter().filter(|one| one.parts_at.is_none()).count();
    let tokens: Vec<&Token> = all.iter().flat_map(|one| &one.tokens).collect();
    let (count, agree) = (tokens.len().max(1) as f64, tokens.iter().filter(|token| token.same_top).count());
    let kl = tokens.iter().map(|token| token.kl).sum::<f64>() / count;
    format!(
        "{same} of {} prompts are continued by the same text. KL {kl:.5} nats a token, same top token {agree} of {}.",
        all.len(),
        tokens.len()
    )
}

/// The original's text, its tokens marked by how far the models diverge there.
fn marked(tokens: &[Token], shared: Option<usize>) -> String {
    let (mut html, mut at) = (String::new(), 0);
    let (mut open, shared) = (shared.is_some(), shared.unwrap_or(usize::MAX));
    for token in tokens {
        if open && at + token.text.len() > shared {
            html.push_str(PART);
            open = false;
        }
        let text = escape(&token.text);
        let text = if at + token.text.len() <= shared { format!("<span class=\"same\">{text}</span>") } else { text };
        at += token.text.len();
        match token.kl {
            kl if kl < LIGHT => html.push_str(&text),
            kl => {
                let class = if kl >= STRONG { " class=\"s\"" } else { "" };
                let _ = write!(html, "<mark{class} title=\"KL {kl:.4} nats\">{text}</mark>");
            }
        }
    }
    html
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use octet_eval::degeneration::TextFigures;

    fn outputs() -> Outputs {
        let token = |text: &str, kl: f64| Token { text: text.into(), kl, same_top: kl < 0.1 };
        let written = |text: &str| Written { text: text.into(), tokens: 3, ended: false, health: TextFigures::default() };
        Outputs {
            prompt: "a <b> & \u{1b}[31m".into(),
            base: written("one two thr\u{e9}e <i>"),
            quant: Some(written("one two four")),
            parts_at: Some(8),
            kl: 0.1,
            tokens: vec![token("one ", 0.0), token("two ", 0.03), token("thr\u{e9}e <i>", 0.5)],
        }
    }

    #[test]
    fn lines_fit_and_nothing_controls_the_terminal() {
        let mut one = outputs();
        one.base.text.push_str(&"long words ".repeat(40));
        one.base.text.push_str(&"x".repeat(300));
        let shown = prompt(&one, false);
        assert!(shown.lines().all(|line| line.chars().count() <= WIDTH), "{shown}");
        assert!(!shown.contains('\u{1b}') && shown.contains("part after 2 tokens of 3"), "{shown}");
        let broken = prompt(&Outputs { quant: None, parts_at: Some(0), ..outputs() }, false);
        assert!(broken.contains("not finite"), "{broken}");
    }

    #[test]
    fn the_page_escapes_and_marks() {
        let html = page("base", "quant", &[outputs()]);
        assert!(html.contains("a &lt;b&gt; &amp;") && !html.contains("<b> &") && !html.contains("<i>"), "{html}");
        assert!(html.contains("<mark class=\"s\" title=\"KL 0.5000 nats\">thr\u{e9}e &lt;i&gt;</mark>"), "{html}");
        // The place is marked in both texts, and in the legend.
        assert_eq!(html.matches(PART).count(), 3, "{html}");
        assert!(html.contains("0 of 1 prompts are continued by the same text"), "{html}");
        assert!(!html.contains("http") && !html.contains("<script"));
    }
}
