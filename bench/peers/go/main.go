// Command peers is what the benchmarks compare with, and the user function that both sides are measured against.
//
//	peers function PORT SPEC        user function: answers discovery with the bytes of file SPEC, echoes commands: event sourced
//	                                entities with one event each, value entities with a new value each, actions
//	peers proxy PORT HOST:PORT      reference stateful proxy on grpc-go with an in-memory journal
//	peers backend PORT              gRPC echo over h2c
//	peers reverse PORT HOST:PORT    net/http reverse proxy over h2c with a concurrency limit
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"peers/es"
)

const (
	discover    = "/cloudstate.EntityDiscovery/discover"
	handle      = "/cloudstate.eventsourced.EventSourced/handle"
	handleValue = "/cloudstate.valueentity.ValueEntity/handle"
	handleUnary = "/cloudstate.action.ActionProtocol/handleUnary"
	window      = 1 << 20
)

// raw passes bytes through and marshals messages, so that neither side pays for a codec that it does not need.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	switch x := v.(type) {
	case *[]byte:
		return mem.BufferSlice{mem.SliceBuffer(*x)}, nil
	case proto.Message:
		b, err := proto.Marshal(x)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	return nil, fmt.Errorf("cannot marshal %T", v)
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	switch x := v.(type) {
	case *[]byte:
		*x = data.Materialize()
		return nil
	case proto.Message:
		return proto.Unmarshal(data.Materialize(), x)
	}
	return fmt.Errorf("cannot unmarshal into %T", v)
}

func serve(listener net.Listener, handler grpc.StreamHandler) {
	server := grpc.NewServer(grpc.ForceServerCodecV2(raw{}), grpc.MaxConcurrentStreams(100_000),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(1<<24), grpc.UnknownServiceHandler(handler))
	log.Fatal(server.Serve(listener))
}

func function(spec []byte) grpc.StreamHandler {
	return func(_ any, stream grpc.ServerStream) error {
		switch method, _ := grpc.MethodFromServerStream(stream); method {
		case discover:
			var ignored []byte
			if err := stream.RecvMsg(&ignored); err != nil {
				return err
			}
			return stream.SendMsg(&spec)
		case handle:
			return answerEach[es.StreamIn](stream, eventSourced)
		case handleValue:
			return answerEach[es.ValueStreamIn](stream, value)
		case handleUnary:
			return action(stream)
		default:
			return status.Errorf(codes.Unimplemented, "%s: this function does not serve it", method)
		}
	}
}

func replyOf(payload *es.Any_) *es.ClientAction {
	return &es.ClientAction{Action: &es.ClientAction_Reply{Reply: &es.ReplyMsg{Payload: payload}}}
}

// commanded is a message of an entity's stream, which may carry a command.
type commanded[T any] interface {
	*T
	GetCommand() *es.Command
}

// answerEach answers each command on an entity's stream.
func answerEach[T any, In commanded[T]](stream grpc.ServerStream, answer func(*es.Command) proto.Message) error {
	for {
		in := In(new(T))
		if err := stream.RecvMsg(in); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if command := in.GetCommand(); command != nil {
			if err := stream.SendMsg(answer(command)); err != nil {
				return err
			}
		}
	}
}

func eventSourced(command *es.Command) proto.Message {
	reply := &es.EsReply{CommandId: command.Id, Events: []*es.Any_{command.Payload}, ClientAction: replyOf(command.Payload)}
	return &es.StreamOut{Message: &es.StreamOut_Reply{Reply: reply}}
}

func value(command *es.Command) proto.Message {
	update := &es.ValueAction{Action: &es.ValueAction_Update{Update: &es.Update{Value: command.Payload}}}
	reply := &es.ValueReply{CommandId: command.Id, StateAction: update, ClientAction: replyOf(command.Payload)}
	return &es.ValueStreamOut{Message: &es.ValueStreamOut_Reply{Reply: reply}}
}

func action(stream grpc.ServerStream) error {
	in := &es.ActionCommand{}
	if err := stream.RecvMsg(in); err != nil {
		return err
	}
	return stream.SendMsg(&es.ActionResponse{Response: &es.ActionResponse_Reply{Reply: &es.ReplyMsg{Payload: in.Payload}}})
}

func echo(_ any, stream grpc.ServerStream) error {
	var message []byte
	if err := stream.RecvMsg(&message); err != nil {
		return err
	}
	return stream.SendMsg(&message)
}

type pending struct {
	payload []byte
	done    chan []byte
}

type entity struct {
	mailbox chan *pending
	journal [][]byte
	stream  grpc.ClientStream
	lastID  int64
}

func (e *entity) run() {
	for p := range e.mailbox {
		e.lastID++
		payload := &es.Any_{TypeUrl: "type.googleapis.com/bench.Req", Value: p.payload}
		command := &es.Command{Id: e.lastID, Name: "Unary", Payload: payload}
		if err := e.stream.SendMsg(&es.StreamIn{Message: &es.StreamIn_Command{Command: command}}); err != nil {
			log.Fatal(err)
		}
		out := &es.StreamOut{}
		if err := e.stream.RecvMsg(out); err != nil {
			log.Fatal(err)
		}
		for _, event := range out.GetReply().Events {
			stored, _ := proto.Marshal(event)
			if len(e.journal) > 1000 {
				e.journal = e.journal[:0]
			}
			e.journal = append(e.journal, stored)
		}
		p.done <- out.GetReply().ClientAction.GetReply().Payload.Value
	}
}

type proxy struct {
	function *grpc.ClientConn
	lock     sync.Mutex
	entities map[string]*entity
}

func (p *proxy) entity(key string) *entity {
	p.lock.Lock()
	defer p.lock.Unlock()
	if e, ok := p.entities[key]; ok {
		return e
	}
	description := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	stream, err := p.function.NewStream(context.Background(), description, handle, grpc.ForceCodecV2(raw{}))
	if err != nil {
		log.Fatal(err)
	}
	_ = stream.SendMsg(&es.StreamIn{Message: &es.StreamIn_Init{Init: &es.Init{ServiceName: "bench.Echo", EntityId: key}}})
	e := &entity{mailbox: make(chan *pending, 64), stream: stream}
	go e.run()
	p.entities[key] = e
	return e
}

func (p *proxy) call(_ any, stream grpc.ServerStream) error {
	var message []byte
	if err := stream.RecvMsg(&message); err != nil {
		return err
	}
	waiting := &pending{payload: message, done: make(chan []byte, 1)}
	p.entity(key(message)).mailbox <- waiting
	answer := <-waiting.done
	return stream.SendMsg(&answer)
}

func key(message []byte) string {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		message = message[n:]
		if number == 1 && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message)
			return string(value)
		}
		message = message[protowire.ConsumeFieldValue(number, kind, message):]
	}
	return ""
}

func reverse(listener net.Listener, target string) {
	upstream, err := url.Parse("http://" + target)
	if err != nil {
		log.Fatal(err)
	}
	handler := httputil.NewSingleHostReverseProxy(upstream)
	handler.FlushInterval = -1
	handler.Transport = &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, address string, _ *tls.Config) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	limit := make(chan struct{}, 1000)
	limited := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limit <- struct{}{}
		defer func() { <-limit }()
		handler.ServeHTTP(w, r)
	})
	log.Fatal(http.Serve(listener, h2c.NewHandler(limited, &http2.Server{MaxConcurrentStreams: 10_000})))
}

func main() {
	runtime.GOMAXPROCS(1)
	mode, port := os.Args[1], os.Args[2]
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		log.Fatal(err)
	}
	switch mode {
	case "function":
		spec, err := os.ReadFile(os.Args[3])
		if err != nil {
			log.Fatal(err)
		}
		serve(listener, function(spec))
	case "backend":
		serve(listener, echo)
	case "proxy":
		connection, err := grpc.NewClient(os.Args[3], grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(1<<24))
		if err != nil {
			log.Fatal(err)
		}
		serve(listener, (&proxy{function: connection, entities: map[string]*entity{}}).call)
	case "reverse":
		reverse(listener, os.Args[3])
	default:
		log.Fatalf("mode %q: must be function, proxy, backend or reverse", mode)
	}
}
