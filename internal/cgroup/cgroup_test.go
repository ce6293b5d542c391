package cgroup_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"gapless/internal/cgroup"
)

func machine(t *testing.T, files map[string]string) cgroup.Reader {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return cgroup.Reader{Root: root}
}

const (
	mountV2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
	mountV1 = "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n32 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
)

func TestReader(t *testing.T) {
	tests := []struct {
		name   string
		files  map[string]string
		memory int64
		cpus   int
	}{
		{"nothing to read", nil, 0, runtime.NumCPU()},
		{"version 2, the parent's limit is lower", map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "536870912\n",
			"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
		}, 512 << 20, 1},
		{"version 2 without limits", map[string]string{
			"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/cpu.max": "max 100000\n",
		}, 0, runtime.NumCPU()},
		{"version 1", map[string]string{
			"proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/x\n0::/y\n", "proc/self/mountinfo": mountV1,
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "1048576\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
			"sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "100000\n", "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
		}, 1 << 20, 1},
		{"version 1 without limits", map[string]string{
			"proc/self/cgroup": "5:cpu:/\n4:memory:/\n", "proc/self/mountinfo": mountV1,
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
			"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
		}, 0, runtime.NumCPU()},
		{"garbage", map[string]string{"proc/self/cgroup": "::\nx\n0::/z\n", "proc/self/mountinfo": "x - y\n" + mountV2,
			"sys/fs/cgroup/z/memory.max": "lots", "sys/fs/cgroup/z/cpu.max": "1"}, 0, runtime.NumCPU()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := machine(t, tt.files)
			if m, c := r.MemoryLimit(), r.CPUs(); m != tt.memory || c != tt.cpus {
				t.Errorf("memory %d, processors %d; want %d, %d", m, c, tt.memory, tt.cpus)
			}
		})
	}
}
