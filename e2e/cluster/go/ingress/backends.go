package main

import (
	"fmt"
	"math/rand"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
)

// backends knows where the Services' endpoints are: from EndpointSlices, whoever wrote them, never through a cluster address.
type backends struct {
	services corelisters.ServiceLister
	slices   discoverylisters.EndpointSliceLister
}

func newBackends(factory informers.SharedInformerFactory) *backends {
	return &backends{factory.Core().V1().Services().Lister(), factory.Discovery().V1().EndpointSlices().Lister()}
}

// endpoints gives the ready addresses behind a port of a Service, shuffled, and whether they speak h2c: the port's name says so.
func (b *backends) endpoints(namespace, name string, wanted intstr.IntOrString) (addresses []string, h2c bool, err error) {
	service, err := b.services.Services(namespace).Get(name)
	if err != nil {
		return nil, false, err
	}
	port := portOf(service, wanted)
	if port == nil {
		return nil, false, fmt.Errorf("service %s/%s has no port %s", namespace, name, wanted.String())
	}
	slices, err := b.slices.EndpointSlices(namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: name}))
	if err != nil {
		return nil, false, err
	}
	for _, slice := range slices {
		addresses = append(addresses, ready(slice, port.Name)...)
	}
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	return addresses, port.Name == "h2c" || port.Name == "http2", nil
}

func portOf(service *corev1.Service, wanted intstr.IntOrString) *corev1.ServicePort {
	for i := range service.Spec.Ports {
		p := &service.Spec.Ports[i]
		if wanted.Type == intstr.Int && p.Port == wanted.IntVal || wanted.Type == intstr.String && p.Name == wanted.StrVal {
			return p
		}
	}
	return nil
}

func ready(slice *discoveryv1.EndpointSlice, portName string) (addresses []string) {
	for _, port := range slice.Ports {
		if port.Port == nil || (port.Name == nil && portName != "") || (port.Name != nil && *port.Name != portName) {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			if endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready {
				for _, address := range endpoint.Addresses {
					addresses = append(addresses, net.JoinHostPort(address, strconv.Itoa(int(*port.Port))))
				}
			}
		}
	}
	return addresses
}
