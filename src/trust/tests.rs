//! Tests of ways, links and new files. Tests that change an owner need root.

use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};

use super::*;

fn dir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let real = dir.path().canonicalize().expect("a path");
    (dir, real)
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes `a/b/program`, which no other user can change.
fn program(root: &Path) -> PathBuf {
    fs::create_dir_all(root.join("a/b")).expect("directories");
    let program = root.join("a/b/program");
    fs::write(&program, "#!/bin/sh\n").expect("written");
    mode(&program, 0o755);
    program
}

fn told(program: &Path) -> Option<String> {
    foreign_program(program.to_str().expect("UTF-8"))
}

#[test]
fn each_directory_above_a_program_counts() {
    let (_dir, root) = dir();
    let program = program(&root);
    assert_eq!(told(&program), None);
    for directory in ["a", "a/b"] {
        let directory = root.join(directory);
        let (of, place) = (program.display(), directory.display());
        for open in [0o775, 0o757] {
            mode(&directory, open);
            let expected = format!(
                "the program {of} is in {place}, which is writable by users other than its owner: run chmod \
                 go-w {place}"
            );
            assert_eq!(told(&program), Some(expected));
        }
        // As in /tmp, only the owner of a file can replace it.
        mode(&directory, 0o1777);
        assert_eq!(told(&program), None);
        mode(&directory, 0o755);
        if is_root() {
            chown(&directory, Some(65534), None).expect("given away");
            let expected = format!(
                "the program {of} is in {place}, which belongs to user 65534, who could replace it: run \
                 chown root {place}, or run the agent as that user"
            );
            assert_eq!(told(&program), Some(expected.clone()));
            mode(&directory, 0o1777);
            assert_eq!(told(&program), Some(expected), "a sticky directory's owner can");
            chown(&directory, Some(0), None).expect("taken back");
        }
        mode(&directory, 0o755);
    }
}

#[test]
fn each_link_on_the_way_to_a_program_counts_and_where_it_stands() {
    let (_dir, root) = dir();
    let program = program(&root);
    fs::create_dir(root.join("links")).expect("a directory");
    // The path is links/first/program: a link to a link to a directory, with `..` in it.
    symlink("../a/../links/second", root.join("links/first")).expect("a link");
    symlink(root.join("a/b"), root.join("links/second")).expect("a link");
    let linked = root.join("links/first/program");
    assert_eq!(WayToFile::to(&linked).real.expect("it leads there"), program);
    assert_eq!(told(&linked), None);
    mode(&root.join("links"), 0o777);
    assert!(told(&linked).is_some_and(|told| told.contains("links, which is writable by users other")));
    mode(&root.join("links"), 0o755);
    mode(&root.join("a"), 0o777);
    assert!(told(&linked).is_some_and(|told| told.contains("/a, which is writable by users other")));
    mode(&root.join("a"), 0o755);
    if is_root() {
        let link = root.join("links/second");
        lchown(&link, Some(65534), None).expect("given away");
        let (of, link) = (linked.display(), link.display());
        let expected = format!(
            "the program {of} is found by the link {link}, which belongs to user 65534, who could change it: run chown -h root \
             {link}, or run the agent as that user"
        );
        assert_eq!(told(&linked), Some(expected));
    }
}

#[test]
fn a_way_that_goes_in_circles_ends() {
    let (_dir, root) = dir();
    symlink("round", root.join("round")).expect("a link");
    assert!(WayToFile::to(&root.join("round")).real.is_err());
    assert!(open(&root.join("round"), OFlags::RDONLY).is_err());
    assert!(
        WayToFile::to(&root.join("none/at/all"))
            .real
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    );
}

#[test]
fn a_link_is_followed_only_where_it_is_not_somebody_elses() {
    let (_dir, root) = dir();
    fs::write(root.join("file"), "content").expect("written");
    symlink("file", root.join("link")).expect("a link");
    symlink(root.join("link"), root.join("further")).expect("a link");
    for name in ["file", "link", "further"] {
        let file = open(&root.join(name), OFlags::RDONLY).expect("open");
        assert_eq!(io::read_to_string(file).expect("read"), "content");
    }
    assert!(open_plain(&root.join("link"), OFlags::RDONLY).is_err_and(|error| is_link(&error)));
    if is_root() {
        lchown(root.join("link"), Some(65534), None).expect("given away");
        let error = open(&root.join("further"), OFlags::RDONLY).expect_err("another's link").to_string();
        let link = root.join("link");
        assert_eq!(
            error,
            format!("the link {} belongs to user 65534, who could change its target", link.display())
        );
    }
}

#[test]
fn a_new_file_takes_the_place_of_a_link_and_leaves_its_target_alone() {
    let (_dir, root) = dir();
    let (victim, file) = (root.join("victim"), root.join("file"));
    fs::write(&victim, "precious").expect("written");
    mode(&victim, 0o666);
    symlink(&victim, root.join("file.new")).expect("a link");
    symlink(&victim, &file).expect("a link");
    replace(&file, b"own").expect("replaced");
    assert_eq!(fs::read_to_string(&victim).expect("there"), "precious");
    let made = fs::symlink_metadata(&file).expect("made");
    assert!(made.is_file() && made.mode() & 0o777 == 0o600);
    assert_eq!(fs::read_to_string(&file).expect("there"), "own");
    assert!(!root.join("file.new").exists());
    symlink(root.join("nowhere"), root.join("dangling")).expect("a link");
    let error = create_exclusive(&root.join("dangling"), 0o600).expect_err("a link is something");
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert!(!root.join("nowhere").exists());
}

#[test]
fn a_lock_that_another_user_keeps_on_the_directory_keeps_nothing_from_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = fs::File::open(dir.path()).unwrap();
    foreign.lock().unwrap();
    let file = dir.path().join("assignment");
    replace_as(&file, b"hub", None).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"hub");
}

#[test]
fn two_processes_that_write_one_file_leave_it_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pair");
    let texts = [[b'a'; 3000], [b'b'; 3000]];
    std::thread::scope(|scope| {
        for text in &texts {
            scope.spawn(|| {
                for _time in 0..200 {
                    replace_as(&file, text, None).unwrap();
                    let found = fs::read(&file).unwrap();
                    assert!(texts.iter().any(|text| *text == *found), "{} bytes", found.len());
                }
            });
        }
    });
}
