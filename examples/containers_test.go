package examples

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gapless/internal/deadlines"

	"github.com/goccy/go-yaml"
)

// container is what an example starts gapless with, and how long that may take to end.
type container struct {
	file  string
	args  []string
	grace time.Duration // 0: as long as it takes
}

func kubernetes(t *testing.T) container {
	t.Helper()
	const file = "kubernetes/deployment.yaml"
	type probe struct {
		HTTPGet          struct{ Path, Port string } `yaml:"httpGet"`
		PeriodSeconds    int                         `yaml:"periodSeconds"`
		FailureThreshold int                         `yaml:"failureThreshold"`
	}
	type object struct {
		Kind string
		Spec struct {
			Template struct {
				Spec struct {
					Grace      int `yaml:"terminationGracePeriodSeconds"`
					Containers []struct {
						Args  []string
						Ports []struct {
							Name          string
							ContainerPort int `yaml:"containerPort"`
						}
						Startup   probe          `yaml:"startupProbe"`
						Readiness probe          `yaml:"readinessProbe"`
						Liveness  probe          `yaml:"livenessProbe"`
						Lifecycle map[string]any `yaml:"lifecycle"`
					}
				}
			}
		}
	}
	text := read(t, file)
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var found []object
	for {
		var o object
		err := dec.Decode(&o)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		found = append(found, o)
	}
	if len(found) != 2 || found[0].Kind != "Deployment" || found[1].Kind != "Service" || len(found[0].Spec.Template.Spec.Containers) != 1 {
		t.Fatalf("%s holds %+v", file, found)
	}
	pod := found[0].Spec.Template.Spec
	c := pod.Containers[0]
	ports := make(map[string]string)
	for _, p := range c.Ports {
		ports[p.Name] = fmt.Sprint(p.ContainerPort)
	}
	if ports["http"] != value(c.Args, "--port") || ":"+ports["health"] != value(c.Args, "--health") {
		t.Errorf("%s: the ports are %v, and the arguments %q", file, ports, c.Args)
	}
	for name, p := range map[string]struct {
		probe probe
		path  string
	}{"startup": {c.Startup, "/readyz"}, "readiness": {c.Readiness, "/readyz"}, "liveness": {c.Liveness, "/livez"}} {
		if p.probe.HTTPGet.Path != p.path || p.probe.HTTPGet.Port != "health" {
			t.Errorf("%s: the %s probe asks %+v", file, name, p.probe.HTTPGet)
		}
	}
	// Taken out of the load balancers before the lame duck is over, and not given up before gapless gives up.
	if seen := time.Duration(c.Readiness.PeriodSeconds*c.Readiness.FailureThreshold) * time.Second; seen >= seconds(t, c.Args, "--lame-duck", 0) {
		t.Errorf("%s: the readiness probe may take %v to see the end of a pod", file, seen)
	}
	if allowed := time.Duration(c.Startup.PeriodSeconds*c.Startup.FailureThreshold) * time.Second; allowed < 60*time.Second+deadlines.StartMargin {
		t.Errorf("%s: the startup probe gives up after %v", file, allowed)
	}
	if len(c.Lifecycle) > 0 {
		t.Errorf("%s: there is a lifecycle hook: %v", file, c.Lifecycle)
	}
	return container{file, c.Args, time.Duration(pod.Grace) * time.Second}
}

func compose(t *testing.T) container {
	t.Helper()
	const file = "compose/compose.yaml"
	var f struct {
		Services map[string]struct {
			Command []string
			Grace   string `yaml:"stop_grace_period"`
			Build   struct{ Context, Dockerfile string }
		}
	}
	if err := yaml.Unmarshal(read(t, file), &f); err != nil {
		t.Fatal(err)
	}
	app := f.Services["app"]
	if _, err := os.Stat(filepath.Join("compose", app.Build.Context, app.Build.Dockerfile)); err != nil {
		t.Errorf("%s: %v", file, err)
	}
	grace, err := time.ParseDuration(app.Grace)
	if err != nil {
		t.Errorf("%s: stop_grace_period: %v", file, err)
	}
	return container{file, app.Command, grace}
}

// words of a Dockerfile's instruction in its exec form.
func instruction(t *testing.T, file, name string) []string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^`+name+` (\[.*\])$`).FindAllSubmatch(read(t, file), -1)
	if len(m) != 1 {
		t.Fatalf("%s: there are %d %s in exec form", file, len(m), name)
	}
	var words []string
	if err := yaml.Unmarshal(m[0][1], &words); err != nil {
		t.Fatal(err)
	}
	return words
}

func docker(t *testing.T, file string) container {
	t.Helper()
	if got := instruction(t, file, "ENTRYPOINT"); !slices.Equal(got, []string{"/usr/local/bin/gapless"}) {
		t.Errorf("%s: the entry point is %q", file, got)
	}
	if !strings.Contains(string(read(t, file)), "\nSTOPSIGNAL SIGTERM\n") {
		t.Errorf("%s: no STOPSIGNAL SIGTERM", file)
	}
	return container{file: file, args: instruction(t, file, "CMD")}
}

// The examples agree with themselves and with gapless, as the Dockerfile builds it.
func TestContainers(t *testing.T) {
	gapless := build(t)
	help, err := exec.Command(gapless, "run", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	flags := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^ +(-\w, )?(--[a-z-]+)`).FindAllStringSubmatch(string(help), -1) {
		flags[m[2]] = true
	}
	for _, c := range []container{kubernetes(t), compose(t), docker(t, "docker/Dockerfile"), docker(t, "docker/uvicorn.Dockerfile")} {
		t.Run(c.file, func(t *testing.T) {
			own := c.args[1:]
			if i := slices.Index(own, "--"); i >= 0 {
				own = own[:i]
			}
			if c.args[0] != "run" {
				t.Fatalf("it runs %q", c.args)
			}
			for _, a := range own {
				if strings.HasPrefix(a, "--") && !flags[a] {
					t.Errorf("there is no flag %s", a)
				}
			}
			limit, ok := deadlines.Settings{
				LameDuck: seconds(t, own, "--lame-duck", 0), Settle: seconds(t, own, "--settle", 2*time.Second),
				DrainTimeout: seconds(t, own, "--drain-timeout", 30*time.Second),
			}.StopLimit()
			if !ok || c.grace > 0 && c.grace < limit {
				t.Errorf("a stop may take %v, and is given %v", limit, c.grace)
			}
			args := append([]string{"check"}, own...)
			if strings.HasPrefix(c.file, "kubernetes") {
				args = append(args, "--for", "kubernetes", "--grace", c.grace.String())
			}
			if out, err := command(gapless, args...); err != nil || out != "" {
				t.Errorf("gapless %s: %v\n%s", strings.Join(args, " "), err, out)
			}
		})
	}
}

// build runs the Dockerfile's own build line.
func build(t *testing.T) string {
	t.Helper()
	const file = "docker/Dockerfile"
	m := regexp.MustCompile(`(?m)^RUN (.*go build .*) -o /out/gapless (\./cmd/gapless)$`).FindSubmatch(read(t, file))
	if m == nil {
		t.Fatalf("%s builds nothing", file)
	}
	path := filepath.Join(t.TempDir(), "gapless")
	cmd := exec.Command("/bin/sh", "-c", string(m[1])+` -o "$0" `+string(m[2]), path)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", m[1], err, out)
	}
	return path
}

// command runs a command and returns what it complains of.
func command(name string, args ...string) (string, error) {
	var complaints strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stderr = &complaints
	err := cmd.Run()
	return complaints.String(), err
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// value is what follows a flag; "": it is not there.
func value(args []string, flag string) string {
	if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

func seconds(t *testing.T, args []string, flag string, otherwise time.Duration) time.Duration {
	t.Helper()
	text := value(args, flag)
	if text == "" {
		return otherwise
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Errorf("%s %s: %v", flag, text, err)
	}
	return d
}
