//! The truth of the end: a FIN means that all bytes arrived, a reset stays a reset.

use proxy::observe::names;
use proxy::observe::reason::{Cause, ConnectFailure, Reason};
use proxy::session::Ending;
use tokio::io::AsyncWriteExt;

use crate::rig::*;

#[tokio::test]
async fn a_client_that_ends_its_half_still_gets_the_answer() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let (mut client, mut server) = rig.pair(&listener).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let (question, end) = read_out(&mut server).await;
    assert_eq!(question, b"question");
    end.unwrap();
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let (answer, end) = read_out(&mut client).await;
    assert_eq!(answer, b"answer");
    end.unwrap();
    assert_eq!(rig.ended().await, [(Reason::ClientClosed, 1)]);
    assert_eq!(rig.counter(&names::listener(LISTENER), names::listener::RECEIVED), 8);
    assert_eq!(rig.counter(&names::listener(LISTENER), names::listener::SENT), 6);
    assert_eq!(rig.counter(&names::backend("pool", &address.to_string()), names::backend::BYTES), 14);
}

#[tokio::test]
async fn a_backend_that_ends_its_half_still_gets_the_rest() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let (mut client, mut server) = rig.pair(&listener).await;
    server.write_all(b"greeting").await.unwrap();
    server.shutdown().await.unwrap();
    let (greeting, end) = read_out(&mut client).await;
    assert_eq!(greeting, b"greeting");
    end.unwrap();
    client.write_all(b"the rest").await.unwrap();
    drop(client);
    let (rest, end) = read_out(&mut server).await;
    assert_eq!(rest, b"the rest");
    end.unwrap();
    assert_eq!(rig.ended().await, [(Reason::BackendClosed, 1)]);
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_backend_after_its_bytes() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let (mut client, mut server) = rig.pair(&listener).await;
    client.write_all(b"last words").await.unwrap();
    until("bytes to pass", || rig.sessions().iter().any(|it| it.received == 10)).await;
    reset(client);
    let (bytes, end) = read_out(&mut server).await;
    assert_eq!(bytes, b"last words");
    assert!(is_reset(&end), "{end:?}");
    assert_eq!(rig.ended().await, [(Reason::ClientReset, 1)]);
}

#[tokio::test]
async fn a_reset_of_the_backend_reaches_the_client_after_its_bytes() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let (mut client, mut server) = rig.pair(&listener).await;
    server.write_all(b"half an ans").await.unwrap();
    until("bytes to pass", || rig.sessions().iter().any(|it| it.sent == 11)).await;
    reset(server);
    let (bytes, end) = read_out(&mut client).await;
    assert_eq!(bytes, b"half an ans");
    assert!(is_reset(&end), "{end:?}");
    assert_eq!(rig.ended().await, [(Reason::BackendReset, 1)]);
}

#[tokio::test]
async fn a_reset_after_an_end_is_no_orderly_close() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let (mut client, mut server) = rig.pair(&listener).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_out(&mut server).await.0, b"question");
    // Nobody reads from the client any more; its reset is seen all the same.
    reset(client);
    assert_eq!(rig.ended().await, [(Reason::ClientReset, 1)]);
    let written = soon("a write to fail", async {
        loop {
            if let Err(e) = server.write_all(b"answer").await {
                return e;
            }
        }
    });
    assert!(is_reset(&Err(written.await.kind().into())) || server.write_all(b"x").await.is_err());
}

#[tokio::test]
async fn a_client_that_breaks_while_its_backend_stalls_is_noticed() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let (client, server) = rig.pair(&listener).await;
    let stalled = crate::bytes::write_until_full(&client).await;
    assert!(stalled > 0);
    reset(client);
    // The backend has a window full of bytes that it never reads: no progress for five seconds.
    assert_eq!(rig.ended().await, [(Reason::ClientReset, 1)]);
    drop(server);
}

#[tokio::test]
async fn without_a_backend_the_client_is_reset() {
    let nobody = nobody();
    let rig = rig(&[nobody]).await;
    let end = rig.is_turned_away().await;
    assert!(is_reset(&end), "{end:?}");
    assert_eq!(rig.ended().await, [(Reason::ConnectFailed, 1)]);
    assert_eq!(rig.connect_failed(nobody, ConnectFailure::Refused), 1);
}

#[tokio::test]
async fn a_kill_resets_both_and_tells_what_was_lost() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let (mut client, server) = rig.pair(&listener).await;
    let (_idle, _) = rig.pair(&listener).await;
    let written = crate::bytes::write_until_full(&server).await;
    let busy = rig.sessions().into_iter().find(|it| it.sent > 0).unwrap().id;
    let how = proxy::config::ForcedClose::Fin;
    let ending = Ending { reason: Reason::AdminKilled, cause: Cause::Admin, how };
    assert_eq!(rig.plane.close(vec![busy, u64::MAX], ending).await, 1);
    assert_eq!(rig.plane.close(vec![busy], ending).await, 0);
    let (bytes, end) = read_out(&mut client).await;
    assert!(is_reset(&end), "bytes were unsent, so it is a reset in spite of fin: {end:?}");
    assert!(bytes.len() < written);
    assert_eq!(rig.counter(&names::process(), names::process::forced(Cause::Admin)), 1);
    let unsent = rig.counter(&names::process(), names::process::forced_unsent(Cause::Admin));
    assert!(unsent > 0 && unsent < u64::try_from(written).unwrap(), "{unsent}");
    assert_eq!(rig.closed(Reason::AdminKilled), 1);
    until("one session to be left", || rig.plane.sessions() == 1).await;
}

#[tokio::test]
async fn a_forced_fin_of_a_session_with_nothing_unsent_is_an_orderly_end() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let (mut client, mut server) = rig.pair(&listener).await;
    rig.established(1).await;
    let id = rig.sessions()[0].id;
    let how = proxy::config::ForcedClose::Fin;
    let ending = Ending { reason: Reason::DrainForced, cause: Cause::Drain, how };
    assert_eq!(rig.plane.close(vec![id], ending).await, 1);
    read_out(&mut client).await.1.unwrap();
    read_out(&mut server).await.1.unwrap();
    assert_eq!(rig.ended().await, [(Reason::DrainForced, 1)]);
}

#[tokio::test]
async fn a_plane_that_is_dropped_shows_no_end_of_file() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let (mut client, mut server) = rig.pair(&listener).await;
    server.write_all(b"begun").await.unwrap();
    assert_eq!(read(&mut client, 5).await, b"begun");
    drop(rig);
    assert!(is_reset(&read_out(&mut client).await.1));
    assert!(is_reset(&read_out(&mut server).await.1));
}
