//! The end of the service: announced, then orderly, then by force; and at once if asked twice.

mod harness;

use std::fs::File;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::child::{Process, children, send, stat};
use harness::client::wait_all_ended;
use harness::proxy::PROXYD;
use harness::{Client, Conf, End, Port, Proxy, Starter, Tagged, logs, peer, until, until_some};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

const DEADLINE: Duration = Duration::from_secs(20);

fn refuses(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[track_caller]
fn port_is_free(port: &Port) {
    TcpListener::bind(port.address()).expect("nobody listens on the port any more");
}

#[test]
fn a_shutdown_is_announced_then_drains_then_closes_by_force_and_ends_well() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let conf = Conf::simple(&bind, &[backend.address()])
        .with("shutdown", "delay = \"3s\"")
        .with("drain", "timeout = \"3s\"\nspread = \"1s\"");
    let mut proxy = Proxy::start(&conf);
    let mut leaving = Client::greeted(bind.address()).0;
    let mut staying = Client::many(bind.address(), 10);
    let asked = Instant::now();
    proxy.signal(Signal::SIGTERM);
    until("it is not ready any more", DEADLINE, || proxy.http("/readyz").is_ok_and(|answer| answer.status == 503));
    assert_eq!(proxy.http("/healthz").unwrap().status, 200);
    let mut late = Client::greeted(bind.address()).0;
    assert_eq!(proxy.ctl_json(&["status"])["keeper"]["state"], "shutting-down");

    until("it refuses", DEADLINE, || refuses(bind.address()));
    let stopped = asked.elapsed();
    assert!(stopped >= Duration::from_secs(3), "it stopped accepting after {stopped:?}");
    leaving.echo("sessions go on");
    late.echo("those accepted during the delay too");
    leaving.finish_sending();
    assert_eq!(leaving.wait_end(), End::Fin);
    wait_all_ended(&mut staying, DEADLINE);
    let spared = staying.iter_mut().map(|client| client.ended().unwrap().1 - asked).min().unwrap();
    assert!(spared >= Duration::from_secs(5), "delay 3s, timeout 3s, spread 1s; closed after {spared:?}");
    assert!(staying.iter_mut().all(|client| client.wait_end() == End::Reset));
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
    let log = proxy.stderr();
    let forced: Vec<&str> = logs::lines(&log, "session closed by force").collect();
    assert_eq!(forced.len(), 11, "{log}");
    assert!(forced.iter().all(|line| logs::field(line, "reason") == Some("shutdown_forced")), "{forced:#?}");
    port_is_free(&bind);
    assert!(!proxy.socket().exists(), "the admin socket is left behind");
}

#[test]
fn what_is_queued_is_served() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let mut proxy = Proxy::start(&Conf::simple(&bind, &[backend.address()]));
    let worker = proxy.serving_pid();
    send(worker, Signal::SIGSTOP).unwrap();
    let mut queued: Vec<Client> = (0..30).map(|_| Client::connect(bind.address())).collect();
    proxy.signal(Signal::SIGTERM);
    until("it is not ready any more", DEADLINE, || proxy.stderr().contains("shutting down"));
    send(worker, Signal::SIGCONT).unwrap();
    for client in &mut queued {
        assert_eq!(client.line(), "a");
        client.finish_sending();
        assert_eq!(client.wait_end(), End::Fin);
    }
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
    port_is_free(&bind);
}

#[test]
fn what_waits_for_a_limit_is_served_too() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let conf = Conf::simple(&bind, &[backend.address()]).with("listeners.main", "max_sessions = 1");
    let mut proxy = Proxy::start(&conf);
    let first = Client::greeted(bind.address()).0;
    let mut waiting = Client::connect(bind.address());
    until("the limit is felt", DEADLINE, || proxy.metrics().count("proxyd_accept_paused", &[]) == 1);
    proxy.signal(Signal::SIGTERM);
    drop(first);
    assert_eq!(waiting.line(), "a", "it was accepted by the kernel before the shutdown began");
    drop(waiting);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let backend = Tagged::start("a");
    for (first, second) in [(Signal::SIGTERM, Signal::SIGTERM), (Signal::SIGINT, Signal::SIGTERM)] {
        let bind = Port::reserve();
        let conf = Conf::simple(&bind, &[backend.address()]).with("drain", "timeout = \"off\"");
        let mut proxy = Proxy::start(&conf);
        let worker = Process::of(proxy.serving_pid()).unwrap();
        let mut clients = Client::many(bind.address(), 5);
        proxy.signal(first);
        until("it refuses", DEADLINE, || refuses(bind.address()));
        clients.iter_mut().for_each(|client| client.echo("no force without a timeout"));
        assert_eq!(proxy.exit_status(), None);
        proxy.signal(second);
        assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
        wait_all_ended(&mut clients, DEADLINE);
        assert!(clients.iter_mut().all(|client| client.wait_end() == End::Reset));
        assert!(!worker.exists(), "the worker was left behind");
        port_is_free(&bind);
    }
}

#[test]
fn a_second_signal_during_the_delay_ends_it_at_once() {
    let bind = Port::reserve();
    let backend = Tagged::start("a");
    let conf = Conf::simple(&bind, &[backend.address()]).with("shutdown", "delay = \"1h\"");
    let mut proxy = Proxy::start(&conf);
    proxy.signal(Signal::SIGTERM);
    until("it is not ready any more", DEADLINE, || proxy.http("/readyz").is_ok_and(|answer| answer.status == 503));
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
}

#[test]
fn the_verb_does_what_the_signal_does() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let mut proxy = Proxy::start(&Conf::simple(&bind, &[backend.address()]));
    let mut client = Client::greeted(bind.address()).0;
    assert_eq!(proxy.ctl_json(&["shutdown"])["shutting_down"], true);
    until("it refuses", DEADLINE, || refuses(bind.address()));
    let refused = proxy.ctl(&["backend", "drain", "pool", &backend.address().to_string()]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    client.echo("drains");
    drop(client);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
}

#[test]
fn interrupt_at_the_terminal_reaches_the_keeper_only() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let mut starter = Starter::new(&Conf::simple(&bind, &[backend.address()]).staying());
    // As a shell does with a job in the foreground.
    starter.command.process_group(0);
    let mut proxy = starter.start();
    let mut on_old = Client::greeted(bind.address()).0;
    proxy.upgrade();
    let mut on_new = Client::greeted(bind.address()).0;
    let keeper = proxy.keeper_pid();
    let session = |pid: u32| stat(pid).unwrap().field(6);
    let workers = children(keeper);
    assert_eq!(workers.len(), 2);
    for worker in &workers {
        assert_eq!(session(*worker), u64::from(*worker), "a worker leads a session of its own");
        // To the worker itself they mean nothing.
        for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGQUIT] {
            send(*worker, signal).unwrap();
        }
    }
    assert_ne!(session(keeper), u64::from(workers[0]));
    kill(Pid::from_raw(-i32::try_from(keeper).unwrap()), Signal::SIGINT).unwrap();
    until("it refuses", DEADLINE, || refuses(bind.address()));
    on_old.echo("interrupted, not cut");
    on_new.echo("interrupted, not cut");
    drop((on_old, on_new));
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
}

#[test]
fn as_pid_1_it_reaps_orphans_and_ends_well() {
    let (Some(unshare), Some(nsenter)) = (peer("unshare"), peer("nsenter")) else { return };
    if !Uid::effective().is_root() {
        println!("skipped: only root can make a PID namespace");
        return;
    }
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let mut starter = Starter::new(&Conf::simple(&bind, &[backend.address()]));
    let mut inside = Command::new(unshare);
    inside.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(PROXYD).args(starter.command.get_args());
    let log = File::create(starter.state_dir().parent().unwrap().join("stderr")).unwrap();
    inside.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    starter.command = inside;
    // Pids that it tells are of its namespace, so `status` must not be asked here: the harness would take them for ours.
    let mut proxy = starter.start();
    let init = children(proxy.keeper_pid())[0];
    assert_eq!(proxy.ctl_json(&["status"])["keeper"]["pid"], 1);
    let mut session = Client::greeted(bind.address()).0;

    // The shell ends at once; what it has started is an orphan, and ends when its input does.
    let mut shell = Command::new(nsenter);
    shell.args(["--target", &init.to_string(), "--pid", "sh", "-c", "exec 3<&0; cat <&3 >/dev/null & exit 0"]);
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let input = shell.stdin.take();
    assert!(shell.wait().unwrap().success());
    let is_orphan = |pid: &u32| stat(*pid).is_some_and(|stat| stat.name() == "cat");
    let orphan = until_some("it has the orphan", DEADLINE, || children(init).into_iter().find(is_orphan));
    let orphan = Process::of(orphan).unwrap();
    drop(input);
    until("the orphan is reaped", DEADLINE, || !orphan.exists());
    session.echo("as before");
    assert_eq!(proxy.ctl_json(&["upgrade"])["result"], "committed");
    drop(session);
    send(init, Signal::SIGTERM).unwrap();
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
    port_is_free(&bind);
}
