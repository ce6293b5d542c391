//go:build linux

package systemd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// What the process that becomes systemd is told by.
const (
	roleVariable   = "GAPLESS_SYSTEMD_ROLE"
	folderVariable = "GAPLESS_SYSTEMD_FOLDER" // an empty folder
	cgroupVariable = "GAPLESS_SYSTEMD_CGROUP" // an empty control group of version 2
	lowerVariable  = "GAPLESS_SYSTEMD_LOWER"  // the root that is booted, which stays as it is
)

// systemdBinary is PID 1 of Debian and of all that have merged /usr.
const systemdBinary = "/lib/systemd/systemd"

// target is what is booted: a journal, and nothing of what the machine boots.
const target = "gapless-test.target"

// become makes the process, which is PID 1 of new namespaces, a systemd. It returns only with an error.
func become() error {
	runtime.LockOSThread() // control group namespaces belong to a thread, and exec keeps this one
	group := os.Getenv(cgroupVariable)
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("enter a control group: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare control groups: %w", err)
	}
	root, err := mountRoot(os.Getenv(folderVariable), os.Getenv(lowerVariable))
	if err != nil {
		return err
	}
	if err := prepareRoot(root); err != nil {
		return err
	}
	if err := pivot(root); err != nil {
		return err
	}
	if err := raiseLoopback(); err != nil {
		return err
	}
	args := []string{systemdBinary, "--system", "--unit=" + target, "--log-level=info"}
	return fmt.Errorf("exec %s: %w", systemdBinary, unix.Exec(systemdBinary, args, []string{
		"container=gapless-test", // so that it leaves the kernel's settings alone
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}))
}

func mountRoot(folder, lower string) (root string, err error) {
	mount := func(source, target, kind string, flags uintptr, data string) {
		if err == nil && target != "/" {
			err = os.MkdirAll(target, 0o755)
		}
		if err != nil {
			return
		}
		if failed := unix.Mount(source, target, kind, flags, data); failed != nil {
			err = fmt.Errorf("mount %s at %s: %w", kind, target, failed)
		}
	}
	at := func(names ...string) string { return filepath.Join(append([]string{folder}, names...)...) }
	mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	mount("tmpfs", folder, "tmpfs", 0, "mode=755")
	for _, dir := range []string{"upper", "work"} {
		if err == nil {
			err = os.Mkdir(at(dir), 0o755)
		}
	}
	root = at("root")
	mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, at("upper"), at("work")))
	mount("proc", at("root/proc"), "proc", 0, "")
	mount(at("root/proc/sys"), at("root/proc/sys"), "", unix.MS_BIND, "")
	mount("", at("root/proc/sys"), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "") // the machine's
	mount("sysfs", at("root/sys"), "sysfs", unix.MS_RDONLY, "")
	mount("cgroup2", at("root/sys/fs/cgroup"), "cgroup2", 0, "")
	for _, dir := range []string{"run", "tmp", "dev"} {
		mount("tmpfs", at("root", dir), "tmpfs", 0, "mode=755")
	}
	if err == nil {
		err = os.Chmod(at("root/tmp"), 0o1777)
	}
	for _, dev := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err == nil {
			err = os.WriteFile(at("root/dev", dev), nil, 0o666)
		}
		mountFile(&err, "/dev/"+dev, at("root/dev", dev))
	}
	mount("tmpfs", at("root/dev/shm"), "tmpfs", 0, "mode=1777")
	if err == nil {
		err = os.Symlink("/proc/self/fd", at("root/dev/fd"))
	}
	return root, err
}

func mountFile(err *error, source, target string) {
	if *err != nil {
		return
	}
	if failed := unix.Mount(source, target, "", unix.MS_BIND, ""); failed != nil {
		*err = fmt.Errorf("mount %s: %w", source, failed)
	}
}

// prepareRoot takes out what would be booted, and puts in what is.
func prepareRoot(root string) error {
	var errs []error
	for _, pattern := range []string{"etc/systemd/system", "etc/systemd/user", "etc/fstab", "etc/machine-id", "var/log/journal",
		"usr/lib/systemd/system/*.wants", "usr/lib/systemd/system-generators/*", "usr/lib/systemd/system-environment-generators/*"} {
		found, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, f := range found {
			errs = append(errs, os.RemoveAll(f))
		}
	}
	units := filepath.Join(root, "etc/systemd/system")
	errs = append(errs, os.MkdirAll(units, 0o755), os.WriteFile(filepath.Join(root, "etc/machine-id"), []byte(strings.Repeat("1", 32)+"\n"), 0o444),
		os.WriteFile(filepath.Join(units, target), []byte("[Unit]\nRequires=systemd-journald.service\nAfter=systemd-journald.service\nAllowIsolate=yes\n"), 0o644))
	return errors.Join(errs...)
}

func pivot(root string) error {
	old := filepath.Join(root, "mnt")
	if err := os.MkdirAll(old, 0o755); err != nil {
		return err
	}
	if err := unix.PivotRoot(root, old); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/mnt", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return nil
}

// raiseLoopback brings up lo of the new network namespace.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	return nil
}
