/* Makes the kernel objects it is told to, which CRIU cannot take, prints `ready` and stays. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void must(int good, const char *what)
{
	if (!good) {
		printf("%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

/* A child in a namespace of its own, if one is named; returns when it is there. */
static pid_t child(int namespaces)
{
	int made[2];
	char byte = 1;
	must(pipe(made) == 0, "pipe");
	pid_t pid = fork();
	if (pid == 0) {
		must(!namespaces || unshare(namespaces) == 0, "unshare");
		must(write(made[1], &byte, 1) == 1, "write");
		for (;;)
			pause();
	}
	must(read(made[0], &byte, 1) == 1, "child");
	close(made[0]);
	close(made[1]);
	return pid;
}

static void make(const char *name)
{
	char parameters[120] = { 0 };
	if (!strcmp(name, "io_uring")) {
		must(syscall(SYS_io_uring_setup, 8, parameters) >= 0, name);
	} else if (!strcmp(name, "userfaultfd")) {
		must(syscall(SYS_userfaultfd, 1) >= 0, name);
	} else if (!strcmp(name, "mptcp")) {
		must(socket(AF_INET, SOCK_STREAM, 262) >= 0, name);
	} else if (!strcmp(name, "vsock")) {
		must(socket(AF_VSOCK, SOCK_STREAM, 0) >= 0, name);
	} else if (!strcmp(name, "device")) {
		must(open("/dev/fuse", O_RDONLY) >= 0, name);
	} else if (!strcmp(name, "user")) {
		child(CLONE_NEWUSER);
	} else if (!strcmp(name, "time")) {
		child(0x80);
	} else if (!strcmp(name, "stopped")) {
		pid_t pid = child(0);
		must(kill(pid, SIGSTOP) == 0 && waitpid(pid, NULL, WUNTRACED) == pid, name);
	} else if (!strcmp(name, "inotify")) {
		must(inotify_add_watch(inotify_init1(0), "/etc", IN_CREATE) >= 0, name);
	} else {
		errno = EINVAL;
		must(0, name);
	}
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	for (int i = 1; i < argc; i++)
		make(argv[i]);
	printf("ready\n");
	for (;;)
		pause();
}
