// Package systemd tests gapless below a real systemd, from the units that gapless itself writes: TestMain of the tests boots
// one as PID 1 of namespaces of its own (processes, mounts, network, host name, control groups), on a copy-on-write view of
// the machine's own root, so that nothing of it touches the machine. With GAPLESS_SYSTEMD_ROOT the systemd of that root is
// booted, too: `make test-systemd` fetches a newer one.
package systemd
