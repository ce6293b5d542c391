package control

import "fmt"

// maxSeconds is what a duration in a request may be at most: more is a mistake, and would not fit a time.Duration.
const maxSeconds = 366 * 24 * 3600

func checkUpgrade(req UpgradeRequest) error {
	before := 0
	for _, w := range req.Weights {
		if w < 1 || w > 100 || w <= before {
			return fmt.Errorf("weights: %v are no steps: write percentages from 1 to 100, each greater than the one before", req.Weights)
		}
		before = w
	}
	switch {
	case len(req.Weights) > 0 && !req.Stage:
		return fmt.Errorf("weights: they are for a staged upgrade: add \"stage\": true")
	case req.BakeSeconds != 0 && len(req.Weights) == 0:
		return fmt.Errorf("bake_seconds: there are no weights to bake: add some")
	case len(req.Verify)+len(req.VerifyHTTP) > 0 && !req.Stage:
		return fmt.Errorf("verify: it is for a staged upgrade: add \"stage\": true")
	case req.Preview != "" && !req.Stage:
		return fmt.Errorf("preview: it is for a staged upgrade: add \"stage\": true")
	case req.VerifyProbes < 0 || req.VerifyProbes > MaxProbes:
		return fmt.Errorf("verify_probes: %d is no number of requests: write 1 to %d, or 0 for the default", req.VerifyProbes, MaxProbes)
	}
	if err := checkSeconds("verify_timeout_seconds", &req.VerifyTimeoutSeconds); err != nil {
		return err
	}
	if err := checkSeconds("bake_seconds", &req.BakeSeconds); err != nil {
		return err
	}
	return checkSeconds("keep_seconds", req.KeepSeconds)
}

func checkShift(req ShiftRequest) error {
	if req.Percent < 0 || req.Percent > 100 {
		return fmt.Errorf("percent: %d is no share: write 0 to 100", req.Percent)
	}
	return nil
}

func checkPromote(req PromoteRequest) error { return checkSeconds("keep_seconds", req.KeepSeconds) }

func checkSeconds(field string, s *float64) error {
	if s != nil && !(*s >= 0 && *s <= maxSeconds) {
		return fmt.Errorf("%s: %v is no time: write seconds, 0 to %d", field, *s, maxSeconds)
	}
	return nil
}
