//! `model.packed`: what was stored comes back; what is stale, foreign or damaged does not.
#![allow(missing_docs, clippy::unwrap_used)]

use octet_formats::{
    Folder,
    packed::{FILE, Packed, Writer},
};
use octet_tensor::Scheme;
use std::{fs, path::Path};

const LAYOUT: u32 = 7;

fn scheme() -> Scheme {
    "w4a8-g128".parse().unwrap()
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), b"{}").unwrap();
    fs::write(dir.path().join("model.safetensors"), vec![5u8; 1000]).unwrap();
    let mut writer = Writer::create(dir.path(), LAYOUT).unwrap();
    writer.add("a", 0..16, scheme(), &[&[1; 70], &[2; 3]]).unwrap();
    writer.add("a", 16..32, scheme(), &[&[3; 64]]).unwrap();
    writer.finish(&Folder::disk(dir.path()).unwrap()).unwrap();
    dir
}

fn open(dir: &Path) -> Result<Option<Packed>, String> {
    Packed::open(&Folder::disk(dir).unwrap())
}

fn refusal(dir: &Path) -> String {
    open(dir).err().unwrap()
}

#[test]
fn what_was_stored_comes_back() {
    let dir = folder();
    let packed = open(dir.path()).unwrap().unwrap();
    assert_eq!(*packed.rows("a", 0..16, LAYOUT, scheme()).unwrap(), [[1; 70].as_slice(), &[2; 3]].concat());
    assert_eq!(*packed.rows("a", 16..32, LAYOUT, scheme()).unwrap(), [3; 64]);
    assert!(packed.rows("a", 0..32, LAYOUT, scheme()).is_none());
    assert!(packed.rows("b", 0..16, LAYOUT, scheme()).is_none());
    assert!(packed.rows("a", 0..16, LAYOUT + 1, scheme()).is_none());
    assert!(packed.rows("a", 0..16, LAYOUT, "w4a8-g64".parse().unwrap()).is_none());
    let none = tempfile::tempdir().unwrap();
    assert!(open(none.path()).unwrap().is_none());
}

#[test]
fn a_copy_of_the_folder_is_as_good() {
    let (dir, copy) = (folder(), tempfile::tempdir().unwrap());
    for file in ["config.json", "model.safetensors", FILE] {
        let path = copy.path().join(file);
        fs::copy(dir.path().join(file), &path).unwrap();
        fs::File::options().write(true).open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    assert!(open(copy.path()).unwrap().is_some());
}

#[test]
fn changed_weights_make_it_stale() {
    for file in ["model.safetensors", "config.json"] {
        let dir = folder();
        let path = dir.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[1] ^= 1;
        fs::write(&path, bytes).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert!(refusal(dir.path()).contains(file));
        fs::remove_file(&path).unwrap();
        assert!(refusal(dir.path()).contains(file));
    }
}

#[test]
fn every_damaged_byte_is_noticed() {
    let dir = folder();
    let path = dir.path().join(FILE);
    let whole = fs::read(&path).unwrap();
    let intact =
        |packed: &Packed| packed.rows("a", 0..16, LAYOUT, scheme()).is_some() && packed.rows("a", 16..32, LAYOUT, scheme()).is_some();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(&path, bytes).unwrap();
        // The end of the preamble and what fills up to a cache line mean nothing.
        let filling = (40..64).contains(&at) || (64 + 73..192).contains(&at);
        let noticed = !open(dir.path()).is_ok_and(|packed| packed.is_some_and(|packed| intact(&packed)));
        assert!(noticed || filling, "byte {at} of {}", whole.len());
    }
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(open(dir.path()).is_err(), "cut to {len}");
    }
}
