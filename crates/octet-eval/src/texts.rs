//! From the comparison on several texts to measures and gates: each text by itself and all together.

use crate::{
    Measures,
    along::Along,
    evaluation::{Compared, TextCompared},
    gates::{self, Gate, Thresholds},
    report::{TextInfo, TextMeasures},
    score::Comparison,
    stats::LEAST_BLOCKS,
};

/// Measures of all texts together (and of each, where there are several) with the gates that follow from them: `quality`,
/// `quality.<text>` for every text, `quality.position`.
pub fn verdict_of_texts(compared: &Compared, limits: &Thresholds, seed: u64) -> (Measures, Vec<Gate>) {
    let infos: Vec<TextInfo> = compared.texts.iter().map(|text| TextInfo::of(text.name.clone(), &text.windows)).collect();
    let Some(info) = TextInfo::together(&infos) else { return (Measures::default(), vec![]) };
    let context = info.context;
    let quality = |info: TextInfo, comparison: &Comparison| {
        let (measures, interval, point) = Measures::of_pair(info, comparison, compared.look, seed);
        (measures, gates::quality(interval, point, comparison.non_finite, comparison.tokens(), context, limits))
    };
    let pooled = compared.pooled();
    let (mut measures, gate) = quality(info, &pooled);
    let mut gates = vec![gate];
    if infos.len() > 1 {
        let shorts = short_names(infos.iter().map(|info| info.name.as_str()));
        for ((info, short), TextCompared { comparison, .. }) in infos.into_iter().zip(shorts).zip(&compared.texts) {
            let blocks = comparison.windows.len();
            let (own, gate) = quality(info.clone(), comparison);
            let thin = blocks < LEAST_BLOCKS && comparison.non_finite == 0;
            gates.push(if thin {
                let why = format!("{blocks} blocks are too few to judge {} by itself; it counts among all texts", info.name);
                Gate::not_applicable(&format!("quality.{short}"), why)
            } else {
                gates::quality_of_text(&short, gate)
            });
            if let (Some(ppl), Some(bits_per_byte)) = (own.ppl, own.bits_per_byte) {
                measures.texts.push(TextMeasures { text: info, ppl, kl: own.kl, top1: own.top1, bits_per_byte });
            }
        }
    }
    let along = match &compared.long {
        Some((windows, long)) => Along::of(long, windows.context, seed),
        None => Along::of(&pooled, context, seed),
    };
    gates.push(gates::position(&along, limits));
    (measures, gates)
}

/// Names short enough for a gate: of a path its file without ending, of a phrase its last word; equal ones are numbered.
fn short_names<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut all: Vec<String> = vec![];
    for name in names {
        let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
        let word = stem.split_whitespace().next_back().unwrap_or("text").to_lowercase();
        let same = all.iter().filter(|known| **known == word || known.starts_with(&format!("{word}-"))).count();
        all.push(if same > 0 { format!("{word}-{}", same + 1) } else { word });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_words() {
        let names = ["data/wiki.test.raw", "built-in docs", "x/notes.txt", "y/notes.txt", ""];
        assert_eq!(short_names(names.into_iter()), ["wiki.test", "docs", "notes", "notes-2", "text"]);
    }
}
