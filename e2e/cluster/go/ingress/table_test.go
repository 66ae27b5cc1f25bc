package main

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

func paths(hosts ...string) map[string][]v1alpha1.HTTPIngressPath {
	all := map[string][]v1alpha1.HTTPIngressPath{}
	for _, host := range hosts {
		all[host] = []v1alpha1.HTTPIngressPath{{RewriteHost: host}}
	}
	return all
}

func at(host, path string, header ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "http://"+host+path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func TestHostsAreFoundWithoutPortAndCase(t *testing.T) {
	known := newTable()
	known.set("ns/a", paths("a.example.com"))
	for _, host := range []string{"a.example.com", "A.Example.Com", "a.example.com:8080"} {
		if known.find(at(host, "/")) == nil {
			t.Errorf("%s has no route", host)
		}
	}
	if known.find(at("b.example.com", "/")) != nil {
		t.Error("an unknown host has a route")
	}
}

func TestAnUpdateReplacesAllHostsOfAnIngress(t *testing.T) {
	known := newTable()
	known.set("ns/a", paths("old.example.com", "kept.example.com"))
	known.set("ns/b", paths("other.example.com"))
	known.set("ns/a", paths("kept.example.com", "new.example.com"))
	known.set("ns/b", nil)
	for host, routed := range map[string]bool{"old.example.com": false, "kept.example.com": true, "new.example.com": true, "other.example.com": false} {
		if (known.find(at(host, "/")) != nil) != routed {
			t.Errorf("%s: routed is not %v", host, routed)
		}
	}
}

func TestTheMoreSpecificPathWins(t *testing.T) {
	all := []v1alpha1.HTTPIngressPath{
		{RewriteHost: "any"},
		{RewriteHost: "tag", Headers: map[string]v1alpha1.HeaderMatch{"Knative-Serving-Tag": {Exact: "blue"}}},
		{RewriteHost: "path", Path: "/api"},
	}
	for _, c := range []struct {
		request *http.Request
		want    string
	}{
		{at("h", "/"), "any"},
		{at("h", "/", "Knative-Serving-Tag", "blue"), "tag"},
		{at("h", "/", "Knative-Serving-Tag", "green"), "any"},
		{at("h", "/api/x"), "path"},
	} {
		if got := match(all, c.request); got == nil || got.RewriteHost != c.want {
			t.Errorf("%s %v: %+v, not %s", c.request.URL.Path, c.request.Header, got, c.want)
		}
	}
}

func TestSplitsGetTheirShares(t *testing.T) {
	splits := []v1alpha1.IngressBackendSplit{{Percent: 90}, {Percent: 10}}
	drawn := map[int]int{}
	for dice := 0; dice < 100; dice++ {
		drawn[draw(splits, dice).Percent]++
	}
	if drawn[90] != 90 || drawn[10] != 10 {
		t.Errorf("drawn %v", drawn)
	}
	if draw([]v1alpha1.IngressBackendSplit{{}}, 50) == nil || draw(nil, 50) != nil {
		t.Error("a single split takes all, none takes nothing")
	}
}
