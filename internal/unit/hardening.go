package unit

import (
	"path/filepath"
	"slices"
	"strings"
)

// dropped are the capabilities that neither gapless nor a server behind it has a use for. What root keeps, gapless needs:
// CAP_SETUID, CAP_SETGID and CAP_CHOWN for the workers' user, CAP_KILL and CAP_SYS_PTRACE to signal and look at them,
// CAP_SYS_RESOURCE for their limits, CAP_NET_BIND_SERVICE for ports below 1024, CAP_NET_ADMIN to turn new clients away at
// the beginning of a stop, and the file capabilities of root.
var dropped = []string{
	"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_BLOCK_SUSPEND", "CAP_BPF", "CAP_CHECKPOINT_RESTORE", "CAP_LEASE", "CAP_LINUX_IMMUTABLE",
	"CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_PERFMON", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_MODULE",
	"CAP_SYS_PACCT", "CAP_SYS_RAWIO", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_SYSLOG", "CAP_WAKE_ALARM",
}

// writeHardening writes what takes away rights. Left out on purpose:
//   - MemoryDenyWriteExecute=: node, Java, PyPy and others make code at run time;
//   - PrivateDevices= and ProtectClock= (which closes devices too): servers use graphics processors;
//   - ProtectProc= and ProcSubset=: gapless reads /proc of its workers, the kernel's limits, and who holds its port;
//   - PrivateNetwork=, PrivateUsers=: they change what a port and a user are;
//   - ProtectSystem=strict: a server's own data would need a list of folders.
func (s *Settings) writeHardening(w *writer) {
	w.gap()
	w.comment("Rights that gapless does not need. See docs/systemd.md for what is left out, and why.")
	w.set("NoNewPrivileges", "yes")
	own := s.RunAs != "" || s.DynamicUser
	switch {
	case s.UserManager: // may not change them
	case own && s.LowPort:
		w.comment("For the port below 1024.")
		w.set("AmbientCapabilities", "CAP_NET_BIND_SERVICE")
		w.set("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE")
	case own:
		w.set("CapabilityBoundingSet", "")
	default:
		w.set("CapabilityBoundingSet", "~"+strings.Join(dropped, " "))
	}
	if !s.UserManager { // without privileges there is no file system of its own
		if !below(s.Written, "/usr", "/etc", "/boot", "/efi") {
			w.set("ProtectSystem", "full")
		}
		if !below(s.Written, "/home", "/root", "/run/user") {
			w.set("ProtectHome", "read-only")
		}
		if !below(slices.Concat(s.Paths, s.Written, s.Command, []string{s.Binary}), "/tmp", "/var/tmp") {
			w.set("PrivateTmp", "yes")
		}
		for _, key := range []string{"ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables"} {
			w.set(key, "yes")
		}
	}
	for _, key := range []string{"LockPersonality", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"} {
		w.set(key, "yes")
	}
	w.comment("Netlink is how gapless asks the kernel for connections that were not read yet.")
	w.set("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK")
	w.set("SystemCallArchitectures", "native")
	w.set("SystemCallFilter", "@system-service")
	w.set("SystemCallErrorNumber", "EPERM")
}

// below tells whether one of the paths lies in one of the folders.
func below(paths []string, folders ...string) bool {
	return slices.ContainsFunc(paths, func(p string) bool {
		p = filepath.Clean(p)
		return slices.ContainsFunc(folders, func(f string) bool { return p == f || strings.HasPrefix(p, f+"/") })
	})
}
