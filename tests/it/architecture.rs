//! The floors of the house: which module may use which, and that no two files use each other.
//! Read from the imports and paths in the sources themselves, so that a picture of them cannot be
//! out of date: `cargo test --test it architecture -- --nocapture` prints it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree, Visibility};

/// The modules of the program, from the ground up: each uses only those that stand before it.
const FLOORS: [&str; 8] =
    ["upstream", "store", "judge", "live", "follow", "audit", "serve", "commands"];

#[test]
fn a_module_uses_only_those_below_it() {
    let program = Sources::of("src");
    let mut up = Vec::new();
    let mut picture = BTreeMap::<String, BTreeSet<String>>::new();
    for (from, to) in program.uses() {
        let floor = |file: &str| program.modules[file].first().cloned();
        let (Some(above), Some(below)) = (floor(&from), floor(&to)) else { continue };
        if above == below {
            continue;
        }
        let place = |name: &str| FLOORS.iter().position(|floor| *floor == name);
        // What stands on no floor (metrics, say) is on the ground: anybody may use it, and it uses
        // nobody.
        if place(&below) > place(&above) || (place(&above).is_none() && place(&below).is_some()) {
            up.push(format!("{from} uses {to}"));
        }
        picture.entry(above).or_default().insert(below);
    }
    for (module, below) in &picture {
        println!("{module:>10} ──▶ {}", below.iter().cloned().collect::<Vec<_>>().join(", "));
    }
    assert!(up.is_empty(), "arrows that point up:\n{}", up.join("\n"));
}

#[test]
fn no_two_files_use_each_other() {
    let mut circles = Vec::new();
    for root in ["src", "crates/plc/src", "crates/curve/src", "crates/testkit/src"] {
        let sources = Sources::of(root);
        circles.extend(circles_of(&sources.uses()));
    }
    assert!(circles.is_empty(), "files in a circle:\n{}", circles.join("\n"));
}

/// A path in the sources, from the root of its crate.
type Names = Vec<String>;

/// What a crate's files define and name.
struct Sources {
    /// The module that a file is, by the file's path below the workspace.
    modules: BTreeMap<String, Names>,
    files: BTreeMap<Names, File>,
}

/// One file.
struct File {
    path: String,
    /// Names of items that are defined here.
    defines: BTreeSet<String>,
    /// Names that were brought in by `use`, and what they stand for.
    imports: BTreeMap<String, Names>,
    /// Paths that are written in its code, imports that are only passed on apart.
    names: BTreeSet<Names>,
}

impl Sources {
    fn of(root: &str) -> Sources {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut paths = Vec::new();
        rust_files(&workspace.join(root), &mut paths);
        let mut sources = Sources { modules: BTreeMap::new(), files: BTreeMap::new() };
        for path in paths {
            let below_root = path.strip_prefix(workspace.join(root)).unwrap();
            let module = module_of(below_root);
            let Some(module) = module else { continue };
            let name = path.strip_prefix(workspace).unwrap().display().to_string();
            let file = File::read(&path, &name, &module);
            sources.modules.insert(name, module.clone());
            sources.files.insert(module, file);
        }
        sources
    }

    /// Pairs of files of which the first uses something that the second defines.
    fn uses(&self) -> BTreeSet<(String, String)> {
        let mut uses = BTreeSet::new();
        for file in self.files.values() {
            for names in &file.names {
                if let Some(user) = self.file_of(names, 0)
                    && user.path != file.path
                {
                    uses.insert((file.path.clone(), user.path.clone()));
                }
            }
        }
        uses
    }

    /// The file that defines what a path names, through whatever modules pass it on.
    fn file_of(&self, names: &[String], depth: usize) -> Option<&File> {
        // Names that are passed on in a circle are an error of the compiler's.
        if depth > 16 {
            return None;
        }
        let length = (0..=names.len()).rev().find(|&n| self.files.contains_key(&names[..n]))?;
        let file = &self.files[&names[..length]];
        let Some(name) = names.get(length) else { return Some(file) };
        if file.defines.contains(name) {
            return Some(file);
        }
        let passed_on = file.imports.get(name)?;
        let whole = [passed_on, &names[length + 1..]].concat();
        self.file_of(&whole, depth + 1)
    }
}

impl File {
    fn read(path: &Path, name: &str, module: &[String]) -> File {
        let text = std::fs::read_to_string(path).unwrap();
        let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut file = File {
            path: name.to_owned(),
            defines: BTreeSet::new(),
            imports: BTreeMap::new(),
            names: BTreeSet::new(),
        };
        let items: Vec<&Item> = syntax.items.iter().filter(|item| !is_test(item)).collect();
        for item in &items {
            if let Item::Use(item) = item {
                let mut imported = Vec::new();
                flatten(&item.tree, Vec::new(), &mut imported);
                for (name, names) in imported {
                    let Some(names) = absolute(module, &names, &BTreeMap::new()) else { continue };
                    if matches!(item.vis, Visibility::Inherited) {
                        file.names.insert(names.clone());
                    }
                    file.imports.insert(name, names);
                }
            } else if let Some(name) = defined(item) {
                file.defines.insert(name);
            }
        }
        let mut paths = Paths { module, imports: &file.imports, found: BTreeSet::new() };
        items.iter().for_each(|item| paths.visit_item(item));
        file.names.append(&mut paths.found);
        file
    }
}

/// Collects the paths of a file's code.
struct Paths<'a> {
    module: &'a [String],
    imports: &'a BTreeMap<String, Names>,
    found: BTreeSet<Names>,
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.found.extend(absolute(self.module, &names, self.imports));
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !has_cfg_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, _: &'ast syn::ItemUse) {}

    /// `pub(super)` uses nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

/// A path from the root of the crate; none for what other crates define.
fn absolute(
    module: &[String],
    names: &[String],
    imports: &BTreeMap<String, Names>,
) -> Option<Names> {
    match names.first()?.as_str() {
        "crate" => Some(names[1..].to_vec()),
        "self" => Some([module, &names[1..]].concat()),
        "super" => {
            let (parent, rest) = (module.split_last()?.1, &names[1..]);
            match rest.first().map(String::as_str) {
                Some("super") => absolute(parent, rest, imports),
                _ => Some([parent, rest].concat()),
            }
        }
        first => match imports.get(first) {
            Some(import) => Some([import, &names[1..]].concat()),
            // A module or an item of this file, or something of another crate, which is not found.
            None => Some([module, names].concat()),
        },
    }
}

fn flatten(tree: &UseTree, mut before: Names, found: &mut Vec<(String, Names)>) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, found);
        }
        UseTree::Name(name) => {
            let name = name.ident.to_string();
            match (name.as_str(), before.last().cloned()) {
                ("self", Some(last)) => found.push((last, before)),
                _ => {
                    before.push(name.clone());
                    found.push((name, before));
                }
            }
        }
        UseTree::Rename(rename) => {
            if rename.ident != "self" {
                before.push(rename.ident.to_string());
            }
            found.push((rename.rename.to_string(), before));
        }
        UseTree::Group(group) => {
            group.items.iter().for_each(|tree| flatten(tree, before.clone(), found));
        }
        // Only tests use everything of a module.
        UseTree::Glob(_) => {}
    }
}

fn defined(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

fn is_test(item: &Item) -> bool {
    match item {
        Item::Mod(module) => has_cfg_test(&module.attrs),
        Item::Use(import) => has_cfg_test(&import.attrs),
        Item::Fn(function) => has_cfg_test(&function.attrs),
        _ => false,
    }
}

fn has_cfg_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

/// Each set of files that reach one another, in words.
fn circles_of(uses: &BTreeSet<(String, String)>) -> Vec<String> {
    let reached = |from: &str| {
        let mut reached = BTreeSet::new();
        let mut next = vec![from];
        while let Some(file) = next.pop() {
            for (_, to) in uses.iter().filter(|(user, _)| user == file) {
                if reached.insert(to.as_str()) {
                    next.push(to);
                }
            }
        }
        reached
    };
    let files: BTreeSet<&str> = uses.iter().map(|(from, _)| from.as_str()).collect();
    let reaches: BTreeMap<&str, BTreeSet<&str>> =
        files.iter().map(|&file| (file, reached(file))).collect();
    let mut told = BTreeSet::new();
    let mut circles = Vec::new();
    for &file in &files {
        if !reaches[file].contains(file) || told.contains(file) {
            continue;
        }
        let together: Vec<&str> = files
            .iter()
            .copied()
            .filter(|&other| reaches[file].contains(other) && reaches[other].contains(file))
            .collect();
        told.extend(together.iter().copied());
        let arrows: Vec<String> = uses
            .iter()
            .filter(|(from, to)| together.contains(&&**from) && together.contains(&&**to))
            .map(|(from, to)| format!("  {from} uses {to}"))
            .collect();
        circles.push(format!("{}\n{}", together.join(", "), arrows.join("\n")));
    }
    circles
}

/// The module that a file below the root of a crate is; none of a file of tests.
fn module_of(path: &Path) -> Option<Names> {
    let mut names: Names = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let file = names.pop()?;
    match file.strip_suffix(".rs")? {
        "mod" | "lib" => {}
        "main" if names.is_empty() => return None,
        "tests" => return None,
        name => names.push(name.to_owned()),
    }
    Some(names)
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}
