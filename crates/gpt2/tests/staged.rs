//! `remove_staged` removes the temporary files of results; a call that is writing one then fails and leaves no file.
//! This test has its own process, because `remove_staged` affects all files of a process.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use fused_lora_gpt2::{Error, Output, remove_staged, write_atomically};

fn contents(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_result_is_complete_or_not_written() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("result");
    write_atomically(&path, |file| file.write_all(b"first")).unwrap();

    // A writer that fails after half of the result.
    let failed = write_atomically(&path, |file| {
        file.write_all(b"half")?;
        Err(std::io::Error::other("the disk is full"))
    });
    assert!(failed.unwrap_err().to_string().contains("the disk is full"));
    assert_eq!((std::fs::read(&path).unwrap(), contents(place.path())), (b"first".to_vec(), vec!["result".to_owned()]));

    // `remove_staged` is called after half of the result: the temporary file is gone at once, and the writing call
    // fails.
    let failed = write_atomically(&path, |file| {
        file.write_all(b"half")?;
        assert_eq!(contents(place.path()).len(), 2);
        drop(remove_staged());
        assert_eq!(contents(place.path()), ["result"]);
        file.write_all(b"other half")
    });
    assert!(matches!(failed, Err(Error::Io { path: named, .. }) if named == path));
    assert_eq!(std::fs::read(&path).unwrap(), b"first");

    // As long as its return value lives, no temporary file is created or renamed.
    let (begun, wait) = std::sync::mpsc::channel();
    let held = remove_staged();
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| {
            begun.send(()).unwrap();
            write_atomically(&path, |file| file.write_all(b"second"))
        });
        wait.recv().unwrap();
        assert_eq!(
            (std::fs::read(&path).unwrap(), contents(place.path())),
            (b"first".to_vec(), vec!["result".to_owned()])
        );
        drop(held);
        writer.join().unwrap().unwrap();
    });
    assert_eq!(
        (std::fs::read(&path).unwrap(), contents(place.path())),
        (b"second".to_vec(), vec!["result".to_owned()])
    );
}

#[test]
fn outputs_that_are_the_same_file_are_recognised() {
    let place = tempfile::tempdir().unwrap();
    let [a, b, missing] = ["a", "b", "missing/c"].map(|name| place.path().join(name));
    let same = |a: &Path, b: &Path| Output::at(a).unwrap().is_same(&Output::at(b).unwrap());
    assert!(same(&a, &a) && !same(&a, &b), "neither exists");
    std::fs::write(&a, "").unwrap();
    assert!(same(&a, &a) && !same(&a, &b), "one exists");
    std::fs::hard_link(&a, &b).unwrap();
    assert!(same(&a, &b), "two names of one file");
    let refused = Output::at(&missing).unwrap_err();
    assert!(matches!(&refused, Error::Unwritable { path, .. } if *path == missing), "{refused}");
    assert!(Output::at(&a).unwrap().refuse_input(place.path()).is_err());
    assert!(Output::at(&a).unwrap().refuse_input(&missing).is_ok());
    assert!(matches!(Output::at(place.path()).unwrap_err(), Error::Unwritable { .. }));
}
