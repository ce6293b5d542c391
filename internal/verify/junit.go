package verify

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// The part of the JUnit format that CI systems agree on.
type (
	junitSuite struct {
		XMLName   xml.Name    `xml:"testsuite"`
		Name      string      `xml:"name,attr"`
		Tests     int         `xml:"tests,attr"`
		Failures  int         `xml:"failures,attr"`
		Errors    int         `xml:"errors,attr"`
		Skipped   int         `xml:"skipped,attr"`
		Time      string      `xml:"time,attr"`
		Timestamp string      `xml:"timestamp,attr"`
		Cases     []junitCase `xml:"testcase"`
		Out       junitText   `xml:"system-out"`
	}
	junitText struct {
		Text string `xml:",cdata"`
	}
	junitCase struct {
		Class   string      `xml:"classname,attr"`
		Name    string      `xml:"name,attr"`
		Time    string      `xml:"time,attr"`
		Failure *junitFault `xml:"failure,omitempty"`
		Error   *junitFault `xml:"error,omitempty"`
		Skipped *junitSkip  `xml:"skipped,omitempty"`
	}
	junitSkip struct {
		Message string `xml:"message,attr"`
	}
	junitFault struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",cdata"`
	}
)

// WriteJUnit writes the report as a test suite: a case for each act, one for steady state, one for the verdict as a
// whole. A run in which nothing could be measured is an error, not a failure, and what would have passed in it is skipped.
func (r *Report) WriteJUnit(out io.Writer) error {
	s := junitSuite{Name: "gapless verify", Time: junitTime(r.Took), Timestamp: r.Started.UTC().Format("2006-01-02T15:04:05")}
	add := func(name string, took seconds, fault string) {
		c := junitCase{Class: "gapless.verify", Name: name, Time: junitTime(took)}
		switch {
		case r.Status == Unmeasured:
			c.Skipped = &junitSkip{"not measured"}
			s.Skipped++
		case fault != "":
			c.Failure = &junitFault{Message: clean(fault), Text: r.failuresText()}
			s.Failures++
		}
		s.Cases = append(s.Cases, c)
	}
	lost := func(drops int, allowed bool) string {
		if drops == 0 || allowed {
			return ""
		}
		return count(drops, "request was dropped", "requests were dropped")
	}
	allowed := r.Status != Failed // --max-drops lets some pass
	add("steady state drops no request", r.Took, lost(r.steadyDrops(), allowed))
	for _, a := range r.Acts {
		fault := lost(a.Drops, allowed)
		if !a.OK {
			fault = a.Reason
		}
		add(a.title()+" drops no request", a.Took, fault)
	}
	whole := junitCase{Class: "gapless.verify", Name: "the run is within its limits", Time: junitTime(r.Took)}
	switch reasons := clean(strings.Join(r.Reasons, "; ")); r.Status {
	case Failed:
		whole.Failure = &junitFault{Message: reasons, Text: r.failuresText()}
		s.Failures++
	case Unmeasured:
		whole.Error = &junitFault{Message: reasons}
		s.Errors++
	}
	s.Cases = append(s.Cases, whole)
	s.Tests = len(s.Cases)
	var text strings.Builder
	if err := r.WriteText(&text); err != nil {
		return err
	}
	s.Out.Text = clean(text.String())
	if _, err := io.WriteString(out, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(out)
	enc.Indent("", "  ")
	if err := enc.Encode(s); err != nil {
		return err
	}
	_, err := io.WriteString(out, "\n")
	return err
}

func (r *Report) failuresText() string {
	var b strings.Builder
	r.writeFailures(&b)
	return clean(b.String())
}

func junitTime(s seconds) string { return fmt.Sprintf("%.3f", s) }

// clean drops what XML cannot hold; encoding/xml would write a replacement character for each.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == '\uFFFE' || r == '\uFFFF' {
			return -1
		}
		return r
	}, s)
}
