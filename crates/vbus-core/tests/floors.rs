//! Imports point down: base, wire, shm, bus. Never up, and never sideways between the rooms of floor 2.
//!
//! Reads the sources, so it also sees what is written without `use`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Every room and its floor (`DESIGN.md`, the house). A room that is not here yet is told of.
const ROOMS: [(&str, u32); 6] =
    [("base", 0), ("wire", 1), ("shm", 2), ("transport", 2), ("udp", 2), ("bus", 3)];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn floor(room: &str) -> u32 {
    let known = ROOMS.iter().find(|(name, _)| *name == room);
    known.unwrap_or_else(|| panic!("room {room:?} is on no floor; add it to ROOMS and to lib.rs")).1
}

fn files_under(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = std::fs::read_dir(path).expect("the sources are there");
    entries.flat_map(|entry| files_under(&entry.expect("they can be listed").path())).collect()
}

/// The rooms that a line of code in `room` names, by `crate::` or by going up with `super::`.
fn rooms_named(line: &str, depth: usize) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    // As many steps up as lead out of the room: from a file of the room, two.
    let up = "super::".repeat(depth + 1);
    ["crate::", &up]
        .iter()
        .flat_map(|root| code.split(root).skip(1))
        .flat_map(|path| match path.strip_prefix('{') {
            // use crate::{base::id::Id, wire::control::Message};
            Some(list) => list.split([',', '}']).map(str::trim).collect(),
            None => vec![path],
        })
        .map(|path| path.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect::<String>())
        .filter(|name| source().join(name).is_dir())
        .collect()
}

fn room_of(file: &Path) -> Option<(String, usize)> {
    let inside = file.strip_prefix(source()).expect("a source");
    let mut parts = inside.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let room = parts.next()?;
    let depth = parts.count();
    (depth > 0).then_some((room, depth))
}

#[test]
fn imports_point_down_and_never_sideways() {
    let mut upward = BTreeSet::new();
    let mut downward = 0;
    for file in files_under(&source()) {
        let Some((room, depth)) = room_of(&file) else { continue };
        let text = std::fs::read_to_string(&file).expect("sources are text");
        for (at, line) in text.lines().enumerate() {
            for named in rooms_named(line, depth).into_iter().filter(|named| *named != room) {
                if floor(&named) < floor(&room) {
                    downward += 1;
                } else {
                    upward.insert(format!("{}:{}: {room} imports {named}", file.display(), at + 1));
                }
            }
        }
    }
    assert!(upward.is_empty(), "{}", upward.into_iter().collect::<Vec<_>>().join("\n"));
    assert!(downward > 50, "only {downward} imports were found at all; does this test still read them?");
}

#[test]
fn every_room_has_its_floor() {
    let rooms = std::fs::read_dir(source()).expect("the sources are there");
    for room in rooms.map(|entry| entry.expect("they can be listed")).filter(|entry| entry.path().is_dir()) {
        floor(&room.file_name().to_string_lossy());
    }
}

#[test]
fn an_upward_import_is_seen_however_it_is_written() {
    for line in [
        "use crate::bus::node::Node;",
        "use crate::{bus::Node, wire::bytes};",
        "fn f() -> crate::bus::Node {",
        "    use super::super::bus::Node;",
        "let node = super::super::bus::Node::open();",
    ] {
        assert_eq!(rooms_named(line, 1).first().map(String::as_str), Some("bus"), "{line}");
    }
    assert!(rooms_named("// crate::bus is upstairs", 1).is_empty());
    assert!(rooms_named("use super::bus;", 1).is_empty());
}
