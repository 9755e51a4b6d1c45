//! The page beside several variants: all of them compared.

use super::{head, plots, plots::VariantPoint, words::escape};
use std::fmt::Write;

/// A page that ranks variants: `header` names the columns of `rows` (each row with the page of its variant, if it has one).
pub fn summary_page(model: &str, header: &[&str], rows: &[(Vec<String>, Option<String>)], points: &[VariantPoint]) -> String {
    let mut out = head(&format!("{model}: variants"));
    let _ = write!(out, "<h1>{}: variants</h1><div class=\"wide\"><table class=\"stack\"><thead><tr>", escape(model));
    header.iter().for_each(|name| out.push_str(&format!("<th>{}</th>", escape(name))));
    out.push_str("</tr></thead><tbody>\n");
    for (cells, link) in rows {
        out.push_str("<tr>");
        for (i, (cell, name)) in cells.iter().zip(header).enumerate() {
            let cell = match link.as_ref().filter(|_| i == 1) {
                Some(link) => format!("<a href=\"{}\">{}</a>", escape(link), escape(cell)),
                None => escape(cell),
            };
            let _ = write!(out, "<td class=\"n\" data-label=\"{}\">{cell}</td>", escape(name));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>");
    if let Some(svg) = plots::variants(points) {
        let _ = write!(
            out,
            "<figure>{svg}<figcaption>Size, quality and speed. The larger a disc, the faster it decodes. Down and to the left is better.</figcaption></figure>"
        );
    }
    out.push_str("<p class=\"soft\">Only accepted variants are ranked.</p></main></body></html>\n");
    out
}
