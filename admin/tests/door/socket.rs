//! The admin socket as a file: what is replaced, what is left alone, who may connect.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use crate::harness::{is_there, private_directory};
use admin::socket::{BindError, bind_socket};

fn refused(path: &Path) -> BindError {
    match bind_socket(path) {
        Ok(_) => panic!("{} was bound", path.display()),
        Err(e) => e,
    }
}

#[tokio::test]
async fn it_is_ours_alone_and_goes_with_us() {
    let directory = private_directory();
    let path = directory.path().join("admin.sock");
    let (listener, owned) = bind_socket(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(owned.path(), path);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no other name is left");
    let client = tokio::net::UnixStream::connect(&path).await.unwrap();
    listener.accept().await.unwrap();
    drop((owned, client));
    assert!(!is_there(&path));
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let directory = private_directory();
    let path = directory.path().join("admin.sock");
    drop(StdListener::bind(&path).unwrap());
    assert!(is_there(&path));
    let (_listener, _owned) = bind_socket(&path).unwrap();
    tokio::net::UnixStream::connect(&path).await.unwrap();
}

#[tokio::test]
async fn f32_what_is_not_our_dead_socket_stays() {
    let directory = private_directory();
    let at = |name: &str| directory.path().join(name);
    let living = StdListener::bind(at("living")).unwrap();
    fs::write(at("file"), "precious").unwrap();
    fs::create_dir(at("directory")).unwrap();
    symlink(at("file"), at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    assert!(matches!(refused(&at("living")), BindError::InUse { .. }));
    for name in ["file", "directory", "link", "dangling"] {
        assert!(matches!(refused(&at(name)), BindError::NotASocket { .. }), "{name}");
        assert!(is_there(&at(name)), "{name}");
    }
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "precious");
    assert!(std::os::unix::net::UnixStream::connect(at("living")).is_ok());
    drop(living);
}

#[tokio::test]
async fn a_socket_with_a_full_queue_is_alive() {
    let directory = private_directory();
    let path = directory.path().join("admin.sock");
    let living = socket_with_backlog_of_one(&path);
    let mut waiting = Vec::new();
    while let Ok(client) = tokio::net::UnixStream::connect(&path).await {
        waiting.push(client);
    }
    assert!(matches!(refused(&path), BindError::InUse { .. }));
    drop(living);
}

fn socket_with_backlog_of_one(path: &Path) -> tokio::net::UnixListener {
    let socket = tokio::net::UnixSocket::new_stream().unwrap();
    socket.bind(path).unwrap();
    socket.listen(1).unwrap()
}

#[tokio::test]
async fn f32_a_directory_open_to_others_is_refused() {
    let directory = private_directory();
    let path = directory.path().join("admin.sock");
    for mode in [0o777, 0o770, 0o1777, 0o702] {
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
        let error = refused(&path);
        assert!(matches!(error, BindError::Directory { .. }), "{mode:o}: {error}");
        assert!(error.to_string().contains("0700"), "{error}");
    }
    for mode in [0o700, 0o750, 0o755] {
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
        drop(bind_socket(&path).unwrap());
    }
    let link = tempfile::tempdir().unwrap();
    symlink(directory.path(), link.path().join("d")).unwrap();
    assert!(matches!(refused(&link.path().join("d/admin.sock")), BindError::Directory { .. }));
    assert!(matches!(refused(&directory.path().join("gone/admin.sock")), BindError::Directory { .. }));
}

#[tokio::test]
async fn k10_bad_paths_are_named() {
    let directory = private_directory();
    assert!(matches!(refused(Path::new("admin.sock")), BindError::BadPath { .. }));
    let long = refused(&directory.path().join("s".repeat(108)));
    assert!(long.to_string().contains("107 bytes"), "{long}");
}

/// A successor may have taken the path meanwhile; its socket is not ours to remove.
#[tokio::test]
async fn a_successors_socket_stays() {
    let directory = private_directory();
    let path = directory.path().join("admin.sock");
    let (listener, owned) = bind_socket(&path).unwrap();
    drop(listener);
    let (_successor, _its) = bind_socket(&path).unwrap();
    drop(owned);
    tokio::net::UnixStream::connect(&path).await.unwrap();
}
