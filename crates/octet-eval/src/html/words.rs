//! Figures and texts as a person reads them, safe to stand in a page.

/// `text` with what means something to HTML replaced.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // What no document may hold; a replacement shows that something stood there.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A ratio as a change in percent.
pub(super) fn change(ratio: f64) -> String {
    // What rounds to nothing has no sign.
    let percent = 100.0 * (ratio - 1.0);
    match percent {
        _ if !ratio.is_finite() => "not finite".into(),
        _ if percent.abs() < 0.005 => "0.00 %".into(),
        _ => format!("{percent:+.2} %"),
    }
}

/// Bytes in the largest decimal unit.
pub(super) fn bytes(count: u64) -> String {
    let (unit, divisor) = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)].into_iter().find(|u| count as f64 >= u.1).unwrap_or(("B", 1.0));
    format!("{:.1} {unit}", count as f64 / divisor)
}

/// A number with about three significant digits.
pub(super) fn figure(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "not finite".into(),
        0.0 => "0".into(),
        a if !(0.001..10_000.0).contains(&a) => format!("{value:.1e}"),
        a if a < 1.0 => format!("{value:.4}"),
        a if a < 100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

/// A number at a tick of an axis: no more digits than it needs.
pub(super) fn tick(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    if !(0.001..100_000.0).contains(&value.abs()) {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// The argument as a shell takes it.
pub(super) fn quoted(argument: &str) -> String {
    let plain = !argument.is_empty() && argument.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:,=+%@~".contains(c));
    if plain { argument.into() } else { format!("'{}'", argument.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_break_a_page_does_not() {
        assert_eq!(escape("<b a=\"1\">&\u{0}\u{1b}"), "&lt;b a=&quot;1&quot;&gt;&amp;\u{fffd}\u{fffd}");
        assert_eq!([quoted("a b"), quoted("x"), quoted("it's")], ["'a b'", "x", "'it'\\''s'"]);
        assert_eq!(
            [figure(0.0), figure(0.00012), figure(0.01234), figure(12.345), figure(54321.0)],
            ["0", "1.2e-4", "0.0123", "12.35", "5.4e4"]
        );
        assert_eq!([change(1.0049), change(0.99997), change(f64::NAN)], ["+0.49 %", "0.00 %", "not finite"]);
        assert_eq!(bytes(4_510_000), "4.5 MB");
        assert_eq!([tick(0.0), tick(50.0), tick(0.25), tick(-0.1), tick(1e-5), tick(1e6)], ["0", "50", "0.25", "-0.1", "1e-5", "1e6"]);
    }
}
