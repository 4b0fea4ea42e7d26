/* A binary that looks like proxyd until it misbehaves. HOW is `preflight:ACT` or `worker:ACT`; whatever does not misbehave is
 * done by the real one, REAL. An ACT may be followed by an argument: `exit:1`, `signal:11`, `gate:/path`. */
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
