package main

import (
	"math/rand"
	"net"
	"net/http"
	"strings"
	"sync"

	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

// table knows which paths each host has. An Ingress is replaced as a whole, so that a request never sees half of an update.
type table struct {
	mu     sync.RWMutex
	owners map[string][]string // Ingress → its hosts
	hosts  map[string][]v1alpha1.HTTPIngressPath
}

func newTable() *table {
	return &table{owners: map[string][]string{}, hosts: map[string][]v1alpha1.HTTPIngressPath{}}
}

func (t *table) set(ingress string, hosts map[string][]v1alpha1.HTTPIngressPath) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, host := range t.owners[ingress] {
		delete(t.hosts, host)
	}
	delete(t.owners, ingress)
	for host, paths := range hosts {
		t.hosts[host] = paths
		t.owners[ingress] = append(t.owners[ingress], host)
	}
}

// find gives the path that serves a request, nil if none does.
func (t *table) find(r *http.Request) *v1alpha1.HTTPIngressPath {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	t.mu.RLock()
	paths := t.hosts[strings.ToLower(host)]
	t.mu.RUnlock()
	return match(paths, r)
}

// match picks among a host's paths: the longest prefix first, then the one that asks for more headers.
func match(paths []v1alpha1.HTTPIngressPath, r *http.Request) *v1alpha1.HTTPIngressPath {
	var best *v1alpha1.HTTPIngressPath
	for i := range paths {
		p := &paths[i]
		if !strings.HasPrefix(r.URL.Path, p.Path) || !hasAll(r.Header, p.Headers) {
			continue
		}
		if best == nil || len(p.Path) > len(best.Path) || len(p.Path) == len(best.Path) && len(p.Headers) > len(best.Headers) {
			best = p
		}
	}
	return best
}

func hasAll(header http.Header, wanted map[string]v1alpha1.HeaderMatch) bool {
	for name, value := range wanted {
		if header.Get(name) != value.Exact {
			return false
		}
	}
	return true
}

// draw picks a split by its share; `dice` is uniform in [0, 100).
func draw(splits []v1alpha1.IngressBackendSplit, dice int) *v1alpha1.IngressBackendSplit {
	for i := range splits {
		if dice -= splits[i].Percent; dice < 0 {
			return &splits[i]
		}
	}
	if len(splits) == 0 {
		return nil
	}
	return &splits[len(splits)-1] // a single split may leave its 100 unsaid
}

func drawAny(splits []v1alpha1.IngressBackendSplit) *v1alpha1.IngressBackendSplit {
	return draw(splits, rand.Intn(100))
}
