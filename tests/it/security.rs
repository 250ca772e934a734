//! SECURITY.md says of each sentence which test shows it.

use std::path::Path;

/// The text of all Rust files below a folder.
fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn the_tests_that_are_named_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    ["src", "tests", "crates"].iter().for_each(|folder| sources(&root.join(folder), &mut text));
    let page = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    // Every second piece stands between the marks of code.
    let code = page.split('`').skip(1).step_by(2);
    let is_name = |code: &&str| {
        code.matches('_').count() > 1 && code.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let named: Vec<&str> = code.filter(is_name).collect();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        // As a test is declared, by itself or for each backend.
        let declared = [format!("fn {name}("), format!("    {name},\n")];
        assert!(declared.iter().any(|declared| text.contains(declared)), "there is no test {name}");
    }
}
