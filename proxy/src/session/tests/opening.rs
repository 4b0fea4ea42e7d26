//! What a client did before its session began.

use super::*;

/// More than one read takes, so that the rest is heard of only once the socket is waited for.
const EARLY: [usize; 4] = [0, 1, 16 * 1024, 100_000];

#[test]
fn what_came_before_the_session_is_all_passed_on() {
    on_a_data_thread(async {
        for early in EARLY {
            let world = world(NO_TIMEOUTS).await;
            let (mut client, accepted) = accepted().await;
            let (up, down) = (seeded(1, early), seeded(2, 50_000));
            client.write_all(&up).await.unwrap();
            client.shutdown().await.unwrap();
            world.open(accepted);
            let server = world.backend.accept().await.unwrap().0;
            let (from_client, to_client) = server.into_split();
            tokio::join!(check(from_client, up), send(to_client, Rc::clone(&down)), check(client, down));
            world.is_empty_with(&[(Reason::ClientClosed, 1)]).await;
        }
    });
}

#[test]
fn a_client_that_broke_before_resets_its_backend() {
    on_a_data_thread(async {
        let world = world(NO_TIMEOUTS).await;
        let (client, accepted) = accepted().await;
        sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        world.open(accepted);
        let mut server = world.backend.accept().await.unwrap().0;
        let (bytes, end) = read_out(&mut server).await;
        assert!(bytes.is_empty() && is_reset(&end), "{end:?}");
        world.is_empty_with(&[(Reason::ClientReset, 1)]).await;
    });
}

#[test]
fn a_server_may_speak_first() {
    on_a_data_thread(async {
        let world = world(NO_TIMEOUTS).await;
        let (mut client, accepted) = accepted().await;
        world.open(accepted);
        let mut server = world.backend.accept().await.unwrap().0;
        server.write_all(b"220 ready").await.unwrap();
        let mut heard = [0; 9];
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"220 ready");
        drop(server);
        assert_eq!(client.read(&mut heard).await.unwrap(), 0);
        drop(client);
        world.is_empty_with(&[(Reason::BackendClosed, 1)]).await;
    });
}
