use super::*;
use crate::{
    Measures,
    machine::Machine,
    report::{Ease, Memory, Perplexity, TensorFigures, TextInfo},
    risk::{Coverage, Risk},
    size::Size,
    speed::{CacheCheck, PhaseSpeed, Speed},
    stats::Interval,
    trinity::Inputs,
};

fn phase(base: f64, quant: f64) -> PhaseSpeed {
    let ratio = Some(Interval { estimate: quant / base, low: quant / base - 0.1, high: quant / base + 0.1, blocks: 16 });
    PhaseSpeed { base_tok_s: base, quant_tok_s: quant, ratio, base_spread: Some(0.01), quant_spread: Some(0.02) }
}

/// A report with everything in it, and names that would break a careless page.
pub(crate) fn full() -> Report {
    let machine =
        Machine { cpu: "A <fast> & \"new\" CPU".into(), cores: 2, threads: 2, isa: "avx512".into(), os: "o".into(), version: "v".into() };
    let gates = vec![
        Gate { ci95: Some([0.999, 1.004]), ..Gate::new("quality", 1.002, 1.02, Outcome::Passed, "50000 tokens") },
        Gate::new("speed", 1.9, 1.5, Outcome::Failed, "<script>alert(1)</script>"),
        Gate::not_applicable("size", "nothing is quantized"),
    ];
    let tensor = |layer: usize, kind: &str| TensorFigures {
        name: format!("model.layers.{layer}.mlp.{kind}"),
        scheme: "w4a16".into(),
        bits_per_weight: 4.1 + layer as f64,
        error: 1e-3 * (layer + 1) as f64,
        loss: 1e-4,
    };
    let measures = Measures {
        text: Some(TextInfo {
            name: "/data/corpora/of-many-kinds/held-out/text & more-of-the-same-in-one-file.jsonl".into(),
            tokens: 50_000,
            bytes: 200_000,
            windows: 100,
            blocks: 200,
            context: 512,
            bos: false,
        }),
        ppl: Some(Perplexity {
            base: 10.0,
            base_ci95: None,
            quant: Some(10.02),
            quant_ci95: None,
            ratio: Some(1.002),
            ratio_ci95: Some([0.999, 1.004]),
        }),
        size: Some(Size {
            quantized_weights: 1,
            bits_per_weight: 4.2,
            nominal_bits: 4.0,
            folder_bytes: 3_000_000,
            base_bytes: 8_400_000,
            ratio: 0.36,
            forecast_bytes: None,
        }),
        speed: Some(Speed {
            decode: phase(4000.0, 7600.0),
            prefill: phase(20_000.0, 24_000.0),
            prompt: 256,
            threads: 2,
            isa: "avx512".into(),
            cache: CacheCheck {
                bytes: 8_400_000,
                read_gb_s: Some(70.0),
                large_bytes: 1 << 30,
                large_read_gb_s: Some(20.0),
                served_from_cache: true,
            },
        }),
        memory: Some(Memory { quant_weights: Some(3_100_000), ..Memory::default() }),
        cost: Some(crate::report::Cost {
            forecast_seconds: Some(3.1),
            forecast_most_seconds: Some(4.4),
            seconds: 3.9,
            reference_cached: false,
            parts: vec![("texts".into(), 1.6), ("speed".into(), 1.4), ("tasks".into(), 0.0)],
        }),
        ease: Some(Ease { read_gb_s: Some(20.0), int8_gop_s: Some(1500.0), ..Ease::default() }),
        by_position: (0..10).map(|i| crate::fidelity::Tenth { tokens: 10, kl: 0.01 + 0.001 * f64::from(i), ppl_ratio: 1.01 }).collect(),
        ..Measures::default()
    };
    let mut report = Report::new(
        "w4a16".into(),
        gates,
        false,
        measures,
        machine,
        ["/bin/octet", "quantize", "my model", "--seed", "1"].map(String::from).into(),
    );
    let trinity = Trinity::of(&Inputs::of(&report));
    report.risk = Some(Risk::of(&report, &trinity, Coverage::default()));
    report.trinity = Some(trinity);
    report.tensors = (0..4).flat_map(|layer| ["gate_proj", "up_proj"].map(|kind| tensor(layer, kind))).collect();
    let refused = RungReport::of("as asked", "w4a16", "refused", "refused by <quality>", &report);
    let fine = RungReport::of("8 bits", "w8a16", "accepted", "every gate passed", &report);
    report.ladder = vec![refused, RungReport { outcome: "passed over".into(), note: "no text".into(), ..RungReport::default() }, fine];
    report
}

fn shown(report: &Report) -> String {
    let samples = [PageSample { prompt: "<p>".into(), base: "one two three".into(), quant: "one twos".into() }];
    page(report, &Page { model: "my \"model\"", variants: &[], samples: &samples, folder: "./my model-w4a16" })
}

/// The tags of a document, each opened one closed in its turn; anything else is an error that names it.
fn check_tags(html: &str) -> Result<usize, String> {
    let body = html.strip_prefix("<!DOCTYPE html>\n").ok_or("no doctype")?;
    let (mut open, mut count, mut rest) = (vec![], 0, body);
    while let Some(at) = rest.find('<') {
        let end = rest[at..].find('>').ok_or("a tag does not end")? + at;
        let tag = &rest[at + 1..end];
        if tag.matches('"').count() % 2 == 1 {
            return Err(format!("quotes of <{tag}>"));
        }
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default();
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) if open.pop() != Some(name) => return Err(format!("</{name}> closes nothing")),
            (false, false) => open.push(name),
            _ => {}
        }
        count += 1;
        rest = &rest[end + 1..];
    }
    if open.is_empty() { Ok(count) } else { Err(format!("never closed: {open:?}")) }
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_from_elsewhere() {
    let html = shown(&full());
    assert!(check_tags(&html).unwrap() > 200, "{html}");
    for outside in ["http://", "https://", "//", "<script", "src=", "@import", "url(", "<link", "javascript:", "onload"] {
        let found = html.find(outside);
        assert!(found.is_none(), "{outside} at {:?}", found.map(|at| &html[at.saturating_sub(40)..at + 20]));
    }
    assert!(html.contains("prefers-color-scheme:dark") && html.contains("@media print") && html.contains("width=device-width"));
}

#[test]
fn the_verdict_comes_first_then_gates_then_plots() {
    let html = shown(&full());
    let order: Vec<usize> = ["REFUSED</span>", "Gates</h2>", "Trinity Score</h2>", "Ladder</h2>", "Plots</h2>", "Texts</h2>", "Again</h2>"]
        .iter()
        .map(|part| html.find(part).unwrap_or_else(|| panic!("no {part}")))
        .collect();
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(html.matches("<svg ").count(), 5);
    assert!(html.contains("octet quantize 'my model' --seed 1"));
    assert!(html.contains("-0.10 % to +0.40 %"));
    // The interval of the quality gate, and where its limit and no difference at all lie.
    assert!(html.contains("<span class=\"iv\"") && html.matches("<s style=").count() == html.matches("<span class=\"iv\"").count());
    assert!(html.contains("Judging took 3.9 s, forecast were 3.1 s to 4.4 s (texts 1.6 s, speed 1.4 s)."), "{html}");
}

#[test]
fn what_was_not_measured_is_left_out() {
    let bare = Report { measures: Measures::default(), ladder: vec![], tensors: vec![], trinity: None, risk: None, ..full() };
    let html = page(&bare, &Page { model: "m", folder: "m", ..Page::default() });
    check_tags(&html).unwrap();
    for part in ["<svg", "Texts</h2>", "Plots</h2>", "NaN"] {
        assert!(!html.contains(part), "{part}");
    }
}

#[test]
fn texts_part_at_the_word_that_differs() {
    let [base, quant] = parted("one two three", "one twos");
    assert_eq!((base.as_str(), quant.as_str()), ("one <mark>two</mark> three", "one <mark>twos</mark>"));
    assert_eq!(parted("größer", "größte"), ["<mark>größer</mark>", "<mark>größte</mark>"]);
    assert!(parted("same", "same")[1].contains("(the same)"));
    assert_eq!(parted("ab", "ab cd"), ["<mark>ab</mark>", "<mark>ab</mark> cd"]);
    let long = "1000/".repeat(20);
    let [marked, _] = parted(&format!("{long}x{long}"), &format!("{long}y{long}"));
    let piece = marked.split("<mark>").nth(1).unwrap().split("</mark>").next().unwrap();
    assert!(piece.contains('x') && piece.len() == 2 * MARKED, "{piece}");
    assert_eq!(parted("", "x")[0], "<mark>(ends here)</mark>");
}

/// A browser without a window, where there is one.
fn chromium() -> Option<&'static str> {
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        let found = std::process::Command::new(name).arg("--version").output();
        found.is_ok_and(|output| output.status.success())
    })
}

#[test]
fn a_browser_shows_the_page_without_complaint_and_without_sideways_scrolling() {
    let Some(browser) = chromium() else {
        println!("skipped: no chromium on this machine");
        return;
    };
    let dir = std::env::temp_dir().join(format!("octet-page-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    // The page in frames as wide as a phone and as a desk; the frame around it, not the page, has a script that measures.
    let page = shown(&full()).replace('&', "&amp;").replace('"', "&quot;");
    let frame = |width: u32| format!("<iframe width=\"{width}\" height=\"900\" srcdoc=\"{page}\"></iframe>");
    let script = "onload=()=>{document.title=[...document.querySelectorAll('iframe')].map(f=>{const d=f.contentDocument.documentElement;\
                  return d.scrollWidth-d.clientWidth+':'+f.contentDocument.querySelectorAll('svg').length}).join(' ')+' measured'}";
    let wrapper = format!(
        "<!DOCTYPE html><html><head><title>not yet</title></head><body>{}{}<script>{script}</script></body></html>",
        frame(360),
        frame(1000)
    );
    let file = dir.join("page.html");
    std::fs::write(&file, wrapper).unwrap();
    let output = std::process::Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .arg(&file)
        .output()
        .unwrap();
    let (dom, log) = (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned());
    let _ = std::fs::remove_dir_all(&dir);
    let title = dom.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap_or_default().to_string();
    if title.is_empty() {
        println!("skipped: {browser} does not start here: {}", log.lines().last().unwrap_or_default());
        return;
    }
    assert!(!log.contains("CONSOLE"), "{log}");
    assert_eq!(title, "0:5 0:5 measured", "pixels too wide and plots, on a phone and on a desk");
}
