/* A binary that looks like proxyd until it misbehaves. HOW is `preflight:ACT` or `worker:ACT`; whatever does not misbehave is
 * done by the real one, REAL. An ACT may be followed by an argument: `exit:1`, `signal:11`, `gate:/path`. Acts that return
 * (`descriptors`, `memory`, `user`, `child`, `gate`) go on as the real one. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static void misbehave(const char *act, char **argv)
{
	const char *colon = strchr(act, ':');
	const char *arg = colon ? colon + 1 : "";

	if (!strncmp(act, "exit", 4))
		_exit(atoi(arg));
	if (!strncmp(act, "signal", 6)) {
		signal(atoi(arg), SIG_DFL);
		raise(atoi(arg));
	}
	if (!strncmp(act, "hang", 4)) {
		signal(SIGTERM, SIG_IGN);
		for (;;)
			pause();
	}
	if (!strncmp(act, "print", 5)) {
		puts(arg);
		fflush(stdout);
		_exit(0);
	}
	if (!strncmp(act, "flood", 5))
		for (;;)
			if (write(1, "garbage without end\n", 20) < 0)
				_exit(0);
	if (!strncmp(act, "say", 3)) {
		send(0, arg, strlen(arg), MSG_NOSIGNAL);
		for (;;)
			pause();
	}
	if (!strncmp(act, "leave", 5)) {
		close(0);
		for (;;)
			pause();
	}
	if (!strncmp(act, "descriptors", 11)) {
		struct rlimit few = { atoi(arg), atoi(arg) };
		setrlimit(RLIMIT_NOFILE, &few);
	}
	if (!strncmp(act, "alarm", 5))
		alarm(atoi(arg));
	if (!strncmp(act, "memory", 6)) {
		struct rlimit few = { strtoul(arg, 0, 10), strtoul(arg, 0, 10) };
		setrlimit(RLIMIT_AS, &few);
	}
	if (!strncmp(act, "user", 4) && setuid(atoi(arg)))
		_exit(98);
	if (!strncmp(act, "child", 5) && fork())
		for (;;)
			pause();
	if (!strncmp(act, "passport", 8)) {
		printf("{\"token\":\"%s\",\"version\":\"9.9.9\",\"build\":\"x\",%s}\n", argv[2], arg);
		fflush(stdout);
		_exit(0);
	}
	if (!strncmp(act, "babble", 6))
		for (;;)
			if (send(0, "\0garbage", 8, MSG_NOSIGNAL) < 0)
				pause();
	if (!strncmp(act, "drip", 4))
		for (;;) {
			send(0, "{", 1, MSG_NOSIGNAL);
			sleep(1);
		}
	if (!strncmp(act, "gate", 4))
		while (access(arg, F_OK))
			usleep(2000);
	execv(REAL, argv);
	_exit(99);
}

int main(int argc, char **argv)
{
	const char *when = argc > 1 && !strcmp(argv[1], "--worker") ? "worker:" : "preflight:";

	if (!strncmp(HOW, when, strlen(when)))
		misbehave(HOW + strlen(when), argv);
	execv(REAL, argv);
	return 99;
}
