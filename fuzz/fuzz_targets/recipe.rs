//! Any text is a recipe or a sentence about what is wrong with it; what is a recipe reads back the same when written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octet_quant::Recipe;

fuzz_target!(|text: &str| {
    if let Ok(recipe) = Recipe::from_toml(text) {
        let written = recipe.to_string();
        assert_eq!(Recipe::from_toml(&written).expect("what octet writes it reads"), recipe);
    }
});
